"""Policy families behind the Policy protocol, and what their networks are used for besides a policy.

A family is the file with its name, `sd3.py`, with those that begin as it does. The others load, adapt and quantise
networks, and make what latent rewards read of images and texts, at the sizes that these were trained on.
"""
