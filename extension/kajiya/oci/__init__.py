"""Layers of container images, written and read: by notebooks that capture and restore, and by the service.

Imports nothing else of ours. What only the service needs (manifests, layouts, registries) is `kajiya_hub.oci`.
"""
