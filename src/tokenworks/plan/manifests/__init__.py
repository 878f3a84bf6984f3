"""Manifests for a plan: what an engine or an orchestrator needs to start what was planned. Pure."""

__all__ = [
    "arguments",
    "deployment",
    "dynamo",
    "factory",
    "feasible",
    "llmd",
    "manifest",
    "planned",
    "pods",
    "ray",
    "render",
    "shell",
    "worker_model",
    "yaml_text",
]
