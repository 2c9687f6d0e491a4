"""Training of the policy network."""
