"""Published checkpoints to this library: streaming conversion, verification and assembly of the Hub repository."""
