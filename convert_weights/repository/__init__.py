"""The one Hub repository of all models: assembled, verified, published."""
