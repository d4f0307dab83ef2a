"""CLIP (arXiv 2103.00020) as rewards use it: pixels in, unit vectors and cosines out."""
