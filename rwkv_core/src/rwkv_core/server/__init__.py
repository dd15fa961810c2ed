"""HTTP server with OpenAI's endpoints, on FastAPI and uvicorn: `rwkv-core serve`.

It needs the extra `[serve]`. `service` is what runs behind it, `app` puts the endpoints together.
"""
