"""Typed parts ⇄ ids, labels and positions."""
