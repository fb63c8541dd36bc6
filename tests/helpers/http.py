"""Assertions on the service's answers."""

from typing import Any

import httpx

from kajiya.errors import KajiyaError


def assert_error(response: httpx.Response, error: type[KajiyaError], **params: Any) -> str:
    """The answer is this error, in the one error body and with its status; gives the sentence."""
    assert response.headers["content-type"] == "application/json", response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "params"}
    found = (body["error"]["code"], response.status_code)
    assert found == (error.code, error.status), body
    said = body["error"]["params"]
    assert {k: said.get(k) for k in params} == params
    sentence = body["error"]["message"]
    assert "{" not in sentence.replace("{{", "")
    assert "<" not in sentence
    assert sentence != error.code
    assert len(sentence) < 2000
    assert "\n" not in sentence
    return sentence


def assert_job(response: httpx.Response, status: int = 200) -> dict[str, Any]:
    """The answer is a job."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()
