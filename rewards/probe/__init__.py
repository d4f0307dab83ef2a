"""What each layer of a frozen backbone knows of preference: small heads on single layers and on pairs, and similarity.

`flowrl reward probe CONFIG` is `rewards.probe.run` (arXiv 2606.23626 Figure 4).
"""
