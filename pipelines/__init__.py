"""The doors of the pipeline, one per stage of dvc.yaml: arguments → params → one room → one artefact. Not for import."""
