"""The object storage beside the API: blobs by presigned addresses, and blocks of Volumes' files."""

import base64
import hashlib

from aiohttp import web
from grpclib.exceptions import GRPCError

from tests.peers.modal.state.blobs import Blobs
from tests.peers.modal.state.volumes import Volumes


class Files:
    def __init__(self, blobs: Blobs, volumes: Volumes) -> None:
        self._blobs = blobs
        self._volumes = volumes

    def routes(self) -> list[web.RouteDef]:
        return [
            web.put("/blobs/{id}", self.put_blob),
            web.post("/blobs/{id}", self.join_blob),
            web.get("/blobs/{id}", self.get_blob),
            web.put("/blocks/{sha256}", self.put_block),
            web.get("/volumes/{id}/{path:.+}", self.get_file),
        ]

    async def put_blob(self, request: web.Request) -> web.Response:
        data = await request.read()
        digest = hashlib.md5(data)
        announced = request.headers.get("Content-MD5")
        if announced is not None and announced != base64.b64encode(digest.digest()).decode():
            return web.Response(status=400, text="The Content-MD5 you specified did not match what we received.")
        self._blobs.put(request.match_info["id"], data)
        return web.Response(headers={"ETag": f'"{digest.hexdigest()}"'})

    async def join_blob(self, request: web.Request) -> web.Response:
        return web.Response(text=self._blobs.join(request.match_info["id"], int(request.query["parts"])))

    async def get_blob(self, request: web.Request) -> web.StreamResponse:
        try:
            return web.FileResponse(self._blobs.path(request.match_info["id"]))
        except GRPCError as error:
            return web.Response(status=404, text=error.message)

    async def put_block(self, request: web.Request) -> web.Response:
        data = await request.read()
        digest = hashlib.sha256(data)
        if digest.hexdigest() != request.match_info["sha256"]:
            return web.Response(status=400, text="the block has another digest")
        self._blobs.put(self._blobs.block(digest.digest()).name, data)
        return web.Response(text=digest.hexdigest())

    async def get_file(self, request: web.Request) -> web.StreamResponse:
        try:
            path = self._volumes.by_id(request.match_info["id"]).existing(request.match_info["path"])
        except GRPCError as error:
            return web.Response(status=404, text=error.message)
        start, stop = int(request.query["start"]), int(request.query["stop"])
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        return web.Response(body=data, headers={"Repr-Digest": f"sha-256=:{digest}:"})
