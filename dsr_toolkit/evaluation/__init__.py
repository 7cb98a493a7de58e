"""Scores: of geometry, masks, programs and answers."""
