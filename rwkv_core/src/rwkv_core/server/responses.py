"""`/v1/responses`: answers that are stored as states, to go on from at no cost."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
