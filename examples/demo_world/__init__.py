"""The demo world: painted scenes, questions about them, and a model that learns both."""
