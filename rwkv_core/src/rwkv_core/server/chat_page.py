"""The chat page at `/`, from three files in the folder `page`."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

# The page loads nothing from other sites, has no inline code, and cannot be framed.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
FOLDER = Path(__file__).parent / "page"
router = APIRouter()


@router.get("/", include_in_schema=False)
async def chat_page() -> FileResponse:
    """Return the chat page."""
    return FileResponse(FOLDER / "index.html", headers=_HEADERS)
