"""The demo world: painted scenes of everyday things, questions about them, and a model that learns both."""
