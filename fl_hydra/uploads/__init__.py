"""Uploads to a tracker after training: what it lacks of runs, summaries of sections, and dashboards."""
