"""Images: their descriptions, and where they are kept. Imports nothing of ours but `kajiya.oci`."""
