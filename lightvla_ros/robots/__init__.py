"""Robots: each is a description (data, in config/robots) and two pure functions, state in and action out."""
