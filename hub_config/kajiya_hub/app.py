from kajiya_hub.api.application import create_app as create_app
