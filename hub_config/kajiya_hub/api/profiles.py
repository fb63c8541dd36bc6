"""The profiles open to the caller."""

import asyncio

from fastapi import APIRouter
from starlette.responses import Response

from kajiya import profiles as rules
from kajiya.types import ProfileView
from kajiya_hub.api.deps import Given, Who
from kajiya_hub.api.openapi import errors
from kajiya_hub.api.views import profiles_answer

router = APIRouter(tags=["profiles"])


@router.get(
    "/profiles",
    summary="List your profiles",
    description="In the order of the profile file, with what each gives, and whether it can be had now.",
    responses={200: {"model": list[ProfileView], "description": "The profiles open to you."}} | errors(403),
)
async def listed(who: Who, deps: Given) -> Response:
    who.person("profiles")
    return profiles_answer(await asyncio.to_thread(_views, deps, who.name, who.identity.whoami.groups), who.language)


def _views(deps: Given, name: str, groups: list[str]) -> list[ProfileView]:
    capacity = deps.capacity()
    mine = rules.allowed_profiles(deps.profiles(), name, groups)
    # CPUs count for jobs, which are what this service starts.
    return [rules.view(p, capacity, deps.used(name, p.slug), cpu=True) for p in mine]
