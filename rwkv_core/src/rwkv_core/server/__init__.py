"""HTTP server with OpenAI's endpoints, on FastAPI and uvicorn: `rwkv-core serve`.

It needs the extra `[serve]`. `service` holds the model and its engine; `app` assembles the
endpoints.
"""
