"""Rewards: one file or folder each, and how reward models are trained and measured.

A reward is reached through the registry of `flowrl` or by its dotted path ("rewards.dit_reward:DiTReward"); this
package imports nothing heavy by itself.
"""
