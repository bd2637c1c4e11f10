"""A server on the loopback that answers the calls of the real W&B client, so that our use of it can be tested without a network.

It says nothing about the service itself. It keeps runs, their history and artifacts in memory, and can be told to answer errors, to hang
or to die.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "us"


class Server:
    """behave: `well`, `errors` (500 to every request), `refuses` (401), `hangs` (no answer). What it holds is for tests to look at."""

    def __init__(self) -> None:
        self.behaves = "well"
        self.runs: dict[str, dict[str, Any]] = {}
        """By id: history (lines by offset), summary, config, state, and what the client said of it."""
        self.artifacts: dict[str, dict[str, Any]] = {}
        """By id: what the client said of it, aliases, state, version, files (digest by path) and manifest."""
        self.files: dict[str, bytes] = {}
        """Contents by URL path."""
        self.calls: list[str] = []
        self.uploads: list[str] = []
        """Paths of artifacts' files that were uploaded."""
        self.die_at: str | None = None
        """The call that it dies at; `upload` is that of an artifact's file."""
        self.upload_seconds = 0.0
        """How long it takes to receive an artifact's file."""
        self.lock = threading.RLock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _body(self) -> bytes:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

            def _answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _behave(self) -> bool:
                if server.behaves == "hangs":
                    while server.behaves == "hangs":
                        time.sleep(0.05)
                    self.close_connection = True
                    return False
                if server.behaves in ("errors", "refuses"):
                    self._answer(500 if server.behaves == "errors" else 401, b'{"errors": [{"message": "no"}]}')
                    return False
                if server.behaves == "dead":
                    self.close_connection = True
                    return False
                return True

            def do_GET(self) -> None:
                if self._behave():
                    path = self.path.partition("?")[0]
                    if path in server.files:
                        self._answer(200, server.files[path], "application/octet-stream")
                    else:
                        self._answer(404, b"{}")

            def do_PUT(self) -> None:
                body = self._body()
                if not self._behave():
                    return
                if self.path.startswith("/artifact/") and server.dies("upload"):
                    self.close_connection = True
                    return
                if self.path.startswith("/artifact/"):
                    time.sleep(server.upload_seconds)
                with server.lock:
                    server.files[self.path] = body
                    if self.path.startswith("/artifact/"):
                        server.uploads.append(self.path)
                self._answer(200, b"{}")

            def do_POST(self) -> None:
                body = self._body()
                if not self._behave():
                    return
                with server.lock:
                    if self.path.startswith("/graphql"):
                        request = json.loads(body)
                        name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
                        called = name[1] if name else "?"
                        server.calls.append(called)
                        if server.dies(called):
                            self.close_connection = True
                            return
                        handle = getattr(server, f"_{called}", None)
                        answer = handle(request.get("variables") or {}) if handle else {}
                        self._answer(200, json.dumps({"data": answer}).encode())
                    elif self.path.endswith("/file_stream"):
                        if server.dies("file_stream"):
                            self.close_connection = True
                            return
                        server._stream(self.path, json.loads(body))
                        self._answer(200, b"{}")
                    else:
                        self._answer(200, b"{}")

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that has gone

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.behaves = "dead"
        self._http.shutdown()
        self._http.server_close()

    def dies(self, call: str) -> bool:
        if self.die_at == call:
            self.behaves, self.die_at = "dead", None
        return self.behaves == "dead"

    def environment(self, home: str) -> dict[str, str]:
        """What a process needs to talk to it, with a home folder in which nothing should be left."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "x" * 40, "HOME": home, "WANDB_ERROR_REPORTING": "false"}

    def history(self, run: str) -> list[dict[str, Any]]:
        """The rows of a run, in order, as they were received."""
        lines = self.runs[run]["history"]
        return [json.loads(lines[offset]) for offset in sorted(lines)]

    def versions(self, collection: str) -> list[dict[str, Any]]:
        """The committed versions of an artifact that have not been deleted, oldest first."""
        mine = [each for each in self.artifacts.values() if each["collection"] == collection and each["state"] == "COMMITTED"]
        return sorted(mine, key=lambda each: int(each["version"]))

    # What follows is named after the client's calls.

    def _viewer(self) -> dict[str, Any]:
        return {
            "id": "u",
            "entity": ENTITY,
            "username": ENTITY,
            "name": ENTITY,
            "flags": "{}",
            "email": "",
            "admin": False,
            "teams": {"edges": [{"node": {"name": ENTITY}}]},
        }

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": self._viewer()}

    def _GetViewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = self._viewer() | {"teams": {"edges": []}, "apiKeys": {"edges": []}, "deletedAt": None, "accountType": None}
        return {"viewer": viewer}

    def _GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": ENTITY}}

    def _ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        bucket = None
        if run is not None:
            lines = [run["history"][offset] for offset in sorted(run["history"])]
            bucket = {
                "id": run["id"],
                "name": variables["name"],
                "summaryMetrics": json.dumps(run["summary"]),
                "displayName": run.get("displayName"),
                "logLineCount": 0,
                "historyLineCount": len(lines),
                "eventsLineCount": 0,
                "historyTail": json.dumps(lines[-1:]),
                "eventsTail": "[]",
                "config": run["config"],
                "tags": run.get("tags") or [],
                "wandbConfig": json.dumps({"t": 1}),
            }
        entity = {"id": "e", "name": ENTITY}
        return {"model": {"id": "p", "name": variables["project"], "entity": entity, "bucket": bucket}}

    def _UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or next(run for run, each in self.runs.items() if each["id"] == variables["id"])
        inserted = name not in self.runs
        run = self.runs.setdefault(
            name, {"id": f"run-{name}", "history": {}, "summary": {}, "config": "{}", "state": "running", "opened": 0}
        )
        run["opened"] += 1
        run["state"] = "running"
        given = {key: value for key, value in variables.items() if value is not None and key not in ("id", "name")}
        run.update(given)
        bucket = {
            "id": run["id"],
            "name": name,
            "displayName": run.get("displayName") or name,
            "description": "",
            "config": run["config"],
            "sweepName": None,
            "historyLineCount": len(run["history"]),
            "project": {"id": "p", "name": run.get("project", "p"), "entity": {"id": "e", "name": ENTITY}},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _Run(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        if run is None:
            return {"project": {"run": None}}
        rows = self.history(variables["name"])
        node = {
            "id": run["id"],
            "projectId": 1,
            "name": variables["name"],
            "displayName": run.get("displayName"),
            "tags": run.get("tags") or [],
            "sweepName": None,
            "state": run["state"],
            "config": run["config"],
            "group": run.get("groupName"),
            "jobType": run.get("jobType"),
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "description": "",
            "notes": "",
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run["summary"]),
            "historyLineCount": len(rows),
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": {"lastStep": rows[-1]["_step"] if rows else -1, "keys": {}, "sets": []},
        }
        return {"project": {"run": node}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables.get("run")
        files = [{"name": name, "uploadUrl": f"{self.url}/run/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": f"run-{run}", "uploadHeaders": [], "files": files}}

    def _stream(self, path: str, body: dict[str, Any]) -> None:
        run = self.runs[path.split("/")[4]]
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                for position, line in enumerate(part["content"]):
                    run["history"][part["offset"] + position] = line
            elif name == "wandb-summary.json":
                for line in part["content"]:
                    run["summary"] = json.loads(line)
        if body.get("complete"):
            run["state"] = "finished" if body.get("exitcode") == 0 else "failed"

    def _ProjectArtifactType(self, variables: dict[str, Any]) -> dict[str, Any]:
        kind = {"__typename": "ArtifactType", "id": "t", "name": variables["type"], "description": "", "createdAt": "2026-01-01"}
        return {"project": {"artifactType": kind}}

    def _ArtifactType(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self._find(variables["name"])
        return {"project": {"artifact": artifact and {"artifactType": {"name": artifact["artifactTypeName"]}}}}

    def _CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables["input"]
        collection = given["artifactCollectionNames"][0] if given.get("artifactCollectionNames") else given["artifactCollectionName"]
        versions = self.versions(collection)
        same = next((each for each in versions if each["digest"] == given["digest"]), None)
        if same is None:
            number = len(self.artifacts)
            same = {**given, "id": f"A{number}", "collection": collection, "state": "PENDING", "version": None, "files": {}, "names": []}
            self.artifacts[same["id"]] = same
        wanted = [each["alias"] for each in given.get("aliases") or []]
        same["wanted"] = wanted
        if same["state"] == "COMMITTED":
            self._alias(same, wanted)
        return {"createArtifact": {"artifact": self._created(same)}}

    def _created(self, artifact: dict[str, Any]) -> dict[str, Any]:
        newest = self.versions(artifact["collection"])[-1:]
        latest = {"id": newest[0]["id"], "versionIndex": newest[0]["version"]} if newest else None
        return {
            "id": artifact["id"],
            "state": artifact["state"],
            "artifactSequence": {"id": artifact["collection"], "latestArtifact": latest},
        }

    def _CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[variables["artifactID"]]
        path = f"/manifest/{artifact['id']}.json"
        artifact["manifest"] = path
        file = {"id": "f", "name": "wandb_manifest.json", "displayName": "m", "uploadUrl": self.url + path, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"M{artifact['id']}", "file": file}}}

    def _UpdateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[variables["artifactManifestID"][1:]]
        file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": self.url + artifact["manifest"], "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": variables["artifactManifestID"], "file": file}}}

    def _CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        """As the service is documented to: what an earlier version of the same artifact has, by digest, is not asked for again."""
        edges = []
        for spec in variables["input"]["artifactFiles"]:
            artifact = self.artifacts[spec["artifactID"]]
            known = [each for each in self.versions(artifact["collection"]) if spec["md5"] in each["files"].values()]
            artifact["files"][spec["name"]] = spec["md5"]
            digest = base64.b64decode(spec["md5"]).hex()
            node = {
                "id": f"F{digest}",
                "name": spec["name"],
                "displayName": spec["name"],
                "uploadUrl": None if known else f"{self.url}/artifact/{artifact['collection']}/{digest}/{spec['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "storagePath": f"x/{digest}",
                "artifact": {"id": (known[0] if known else artifact)["id"]},
            }
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[variables["artifactID"]]
        if artifact["state"] != "COMMITTED":
            before = [each["version"] for each in self.artifacts.values() if each["collection"] == artifact["collection"]]
            artifact["version"] = max([-1, *(number for number in before if number is not None)]) + 1
            artifact["state"] = "COMMITTED"
        self._alias(artifact, artifact["wanted"])
        return {"commitArtifact": {"artifact": {"id": artifact["id"], "digest": artifact["digest"]}}}

    def _alias(self, artifact: dict[str, Any], wanted: list[str]) -> None:
        for other in self.artifacts.values():
            if other["collection"] == artifact["collection"]:
                other["names"] = [name for name in other["names"] if name not in wanted]
        artifact["names"] = list(dict.fromkeys([*artifact["names"], *wanted]))

    def _described(self, artifact: dict[str, Any]) -> dict[str, Any]:
        entity = {"name": ENTITY}
        project = {"id": "p", "internalId": "cDox", "name": artifact["projectName"], "entity": entity}
        collection = {"__typename": "ArtifactSequence", "name": artifact["collection"], "project": project}
        aliases = [
            {"__typename": "ArtifactAlias", "id": f"a{name}", "alias": name, "artifactCollection": collection} for name in artifact["names"]
        ]
        return {
            "__typename": "Artifact",
            "id": artifact["id"],
            "artifactSequence": collection,
            "versionIndex": artifact["version"],
            "artifactType": {"name": artifact["artifactTypeName"]},
            "description": "",
            "metadata": artifact.get("metadata") or "{}",
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": artifact["state"],
            "size": 1,
            "digest": artifact["digest"],
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": artifact["id"],
            "fileCount": len(artifact["files"]),
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
            "aliases": aliases,
        }

    def _ProjectArtifacts(self, variables: dict[str, Any]) -> dict[str, Any]:
        versions = self.versions(variables["collection"])[::-1]
        if not versions:
            return {"project": {"artifactType": {"artifactCollection": None}}}
        edges = [{"version": f"v{each['version']}", "node": self._described(each)} for each in versions]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        artifacts = {"totalCount": len(edges), "pageInfo": page, "edges": edges}
        return {"project": {"artifactType": {"artifactCollection": {"__typename": "ArtifactSequence", "artifacts": artifacts}}}}

    def _ProjectArtifactCollection(self, variables: dict[str, Any]) -> dict[str, Any]:
        if not self.versions(variables["name"]):
            return {"project": {"artifactType": {"artifactCollection": None}}}
        project = {"id": "p", "internalId": "cDox", "name": variables["project"], "entity": {"name": ENTITY}}
        collection = {
            "__typename": "ArtifactSequence",
            "id": variables["name"],
            "name": variables["name"],
            "description": "",
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
            "project": project,
            "type": {"name": variables["type"]},
            "tags": {"edges": []},
        }
        return {"project": {"artifactType": {"artifactCollection": collection}}}

    def _find(self, name: str) -> dict[str, Any] | None:
        collection, _, alias = name.partition(":")
        for each in self.versions(collection):
            if alias in each["names"] or alias == f"v{each['version']}":
                return each
        return None

    def _ArtifactMembershipByName(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self._find(variables["name"])
        membership = None
        if artifact is not None:
            described = self._described(artifact)
            membership = {
                "__typename": "ArtifactCollectionMembership",
                "id": f"m{artifact['id']}",
                "versionIndex": artifact["version"],
                "createdAt": "2026-01-01T00:00:00Z",
                "aliases": described["aliases"],
                "artifactCollection": described["artifactSequence"],
                "artifact": described,
            }
        return {"project": {"artifactCollectionMembership": membership}}

    def _ArtifactByID(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": self._described(self.artifacts[variables["id"]])}

    def _FetchArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        url = self.url + self.artifacts[variables["id"]]["manifest"]
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def _ArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        url = self.url + self.artifacts[variables["artifact_id"]]["manifest"]
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def _url_of(self, artifact: dict[str, Any], name: str) -> str:
        digest = base64.b64decode(artifact["files"][name]).hex()
        return next(self.url + path for path in self.files if path.startswith(f"/artifact/{artifact['collection']}/{digest}/"))

    def _GetArtifactMembershipFileUrls(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self._find(f"{variables['collection']}:{variables['alias']}")
        assert artifact is not None
        edges = [{"node": {"__typename": "File", "name": name, "directUrl": self._url_of(artifact, name)}} for name in artifact["files"]]
        files = {"pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}, "edges": edges}
        membership = {"files": files}
        return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": membership}}}

    def _ArtifactFileURLsByManifestEntries(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[variables["id"]]
        edges = [
            {"node": {"__typename": "File", "name": each["name"], "directUrl": self._url_of(artifact, each["name"])}}
            for each in variables["entries"]
        ]
        files = {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": edges}
        return {"artifact": {"filesByManifestEntries": files}}

    def _UpdateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables.get("input") or variables
        artifact = self.artifacts[given["artifactID"]]
        if given.get("aliases") is not None:
            artifact["names"] = [each["alias"] for each in given["aliases"]]
        return {"result": {"artifact": self._described(artifact)}}

    def _DeleteArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[variables["input"]["artifactID"]]
        if artifact["names"] and not variables["input"].get("deleteAliases"):
            return {"result": None}
        artifact["state"] = "DELETED"
        return {"result": {"artifact": {"id": artifact["id"]}}}


@contextmanager
def serving() -> Iterator[Server]:
    """A server, for as long as this lasts."""
    server = Server()
    try:
        yield server
    finally:
        with suppress(Exception):
            server.close()
