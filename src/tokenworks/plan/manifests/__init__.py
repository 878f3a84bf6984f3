"""Manifests for a plan: what an engine or an orchestrator needs to start what was planned. Pure."""

__all__ = [
    "arguments",
    "deployment",
    "dynamo",
    "feasible",
    "llmd",
    "manifest",
    "pods",
    "ray",
    "render",
    "shell",
    "yaml_text",
]
