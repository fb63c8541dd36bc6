"""A reverse proxy that needs no Node: the REST API and command line of configurable-http-proxy, on aiohttp.

JupyterHub starts it through `c.ConfigurableHTTPProxy.command = [sys.executable, "-m", "kajiya_hub.proxy"]`; it runs
alone too. `routes` is pure; `forward` and `tunnel` carry HTTP and websockets; `api` changes the routes; `server` puts
them together. One thing differs on purpose: an open event stream counts as activity only when it starts.
"""
