"""Backends that are wrong in one way each, which the conformance suite has to find."""
