"""Streams of sessions: baselines, trainings and measures of incremental learning."""
