"""The aspect-ratio buckets of prepared sets, which are those of `flowrl.core.buckets`."""

from flowrl.core.buckets import BucketPlan, cover, fit

__all__ = ["BucketPlan", "cover", "fit"]
