"""Policy families: one file each behind the Policy protocol."""
