"""A real Synapse, a matrix-nio sender, a webhook sink, and the bridge between them."""
