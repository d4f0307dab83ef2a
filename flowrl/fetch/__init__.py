"""Getting ready: what a configuration needs that does not come with flowrl, and how it is downloaded and verified."""
