"""Blobs, and Volumes as seen without a mount: uploading, reading, listing, removing."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.peers.modal.private import api_pb2
from tests.peers.modal.state.apps import Apps
from tests.peers.modal.state.blobs import BLOCK_BYTES, Blobs
from tests.peers.modal.state.volumes import Volumes
from tests.peers.modal.wire.dispatch import Asker, Table

UNSPECIFIED = api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED
FAIL_IF_EXISTS = api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS
VERSION_2 = api_pb2.VOLUME_FS_VERSION_V2
LISTED_AT_ONCE = 100


class Storing:
    def __init__(
        self, apps: Apps, volumes: Volumes, blobs: Blobs, url: Callable[[Asker], str], multipart_bytes: int
    ) -> None:
        """`url` is where the asker reaches the peer's HTTP; larger blobs come in parts of `multipart_bytes`."""
        self._apps = apps
        self._volumes = volumes
        self._blobs = blobs
        self._url = url
        self._multipart_bytes = multipart_bytes

    @property
    def table(self) -> Table:
        return {
            "BlobCreate": self.blob_create,
            "BlobGet": self.blob_get,
            "VolumeGetOrCreate": self.volume,
            "VolumeGetById": self.volume_by_id,
            "VolumeDelete": self.delete,
            "VolumePutFiles2": self.put_files,
            "VolumeGetFile2": self.get_file,
            "VolumeListFiles2": self.list_files,
            "VolumeRemoveFile2": self.remove_file,
        }

    async def blob_create(self, request: api_pb2.BlobCreateRequest, asker: Asker) -> api_pb2.BlobCreateResponse:
        blob_id, url = self._blobs.new_id(), self._url(asker)
        if request.content_length <= self._multipart_bytes and known_to_client(url):
            links = api_pb2.UploadUrlList(items=[f"{url}/blobs/{blob_id}"])
            return api_pb2.BlobCreateResponse(blob_ids=[blob_id], upload_urls=links)
        count = max(1, -(-request.content_length // self._multipart_bytes))
        upload = api_pb2.MultiPartUpload(
            part_length=min(self._multipart_bytes, request.content_length),
            upload_urls=[f"{url}/blobs/{blob_id}.{number}" for number in range(count)],
            completion_url=f"{url}/blobs/{blob_id}?parts={count}",
        )
        return api_pb2.BlobCreateResponse(blob_ids=[blob_id], multiparts=api_pb2.MultiPartUploadList(items=[upload]))

    async def blob_get(self, request: api_pb2.BlobGetRequest, asker: Asker) -> api_pb2.BlobGetResponse:
        self._blobs.path(request.blob_id)
        return api_pb2.BlobGetResponse(download_url=f"{self._url(asker)}/blobs/{request.blob_id}")

    async def volume(
        self, request: api_pb2.VolumeGetOrCreateRequest, asker: Asker
    ) -> api_pb2.VolumeGetOrCreateResponse:
        environment, kind = self._apps.environment(request.environment_name), request.object_creation_type
        name = request.deployment_name or self._apps.new_id("unnamed")
        if kind == FAIL_IF_EXISTS and self._volumes.has(environment, name):
            raise GRPCError(Status.ALREADY_EXISTS, f"volume '{name}' exists")
        version = request.version or VERSION_2
        volume = self._volumes.get_or_create(environment, name, create=kind != UNSPECIFIED, version=version)
        metadata = api_pb2.VolumeMetadata(name=volume.name, version=volume.version)
        return api_pb2.VolumeGetOrCreateResponse(volume_id=volume.id, version=volume.version, metadata=metadata)

    async def volume_by_id(
        self, request: api_pb2.VolumeGetByIdRequest, asker: Asker
    ) -> api_pb2.VolumeGetByIdResponse:
        volume = self._volumes.by_id(request.volume_id)
        metadata = api_pb2.VolumeMetadata(name=volume.name, version=volume.version)
        return api_pb2.VolumeGetByIdResponse(volume_id=volume.id, metadata=metadata)

    async def delete(self, request: api_pb2.VolumeDeleteRequest, asker: Asker) -> Empty:
        self._volumes.delete(request.volume_id)
        return Empty()

    async def put_files(
        self, request: api_pb2.VolumePutFiles2Request, asker: Asker
    ) -> api_pb2.VolumePutFiles2Response:
        """Write the files once all their blocks are there; until then tell which are missing."""
        volume, url = self._volumes.by_id(request.volume_id), self._url(asker)
        if request.disallow_overwrite_existing_files:
            there = [file.path for file in request.files if volume.path(file.path).exists()]
            if there:
                raise GRPCError(Status.ALREADY_EXISTS, f"{', '.join(there)} exists already")
        missing: dict[bytes, api_pb2.VolumePutFiles2Response.MissingBlock] = {}
        for number, file in enumerate(request.files):
            for position, block in enumerate(file.blocks):
                digest = block.contents_sha256
                if not self._blobs.block(digest).exists():
                    missing[digest] = api_pb2.VolumePutFiles2Response.MissingBlock(
                        file_index=number, block_index=position, put_url=f"{url}/blocks/{digest.hex()}"
                    )
        if not missing:
            for file in request.files:
                await asyncio.to_thread(volume.put, file, self._blobs)
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing.values())

    async def get_file(self, request: api_pb2.VolumeGetFile2Request, asker: Asker) -> api_pb2.VolumeGetFile2Response:
        volume = self._volumes.by_id(request.volume_id)
        path = volume.existing(request.path)
        if path.is_dir():
            raise GRPCError(Status.INVALID_ARGUMENT, f"'{request.path}' is a folder")
        size = path.stat().st_size
        length = min(request.len or size, size - min(request.start, size))
        first, end = request.start // BLOCK_BYTES, -(-(request.start + length) // BLOCK_BYTES)
        base = f"{self._url(asker)}/volumes/{volume.id}/{path.relative_to(volume.folder).as_posix()}"
        urls = []
        for number in range(first, end if length else first):
            start = max(request.start, number * BLOCK_BYTES)
            stop = min(request.start + length, (number + 1) * BLOCK_BYTES)
            urls.append(f"{base}?start={start}&stop={stop}")
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=request.start, len=length)

    async def list_files(
        self, request: api_pb2.VolumeListFiles2Request, asker: Asker
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        volume = self._volumes.by_id(request.volume_id)
        entries = list(volume.entries(request.path, recursive=request.recursive))
        for start in range(0, len(entries), LISTED_AT_ONCE):
            yield api_pb2.VolumeListFiles2Response(entries=entries[start : start + LISTED_AT_ONCE])

    async def remove_file(self, request: api_pb2.VolumeRemoveFile2Request, asker: Asker) -> Empty:
        volume = self._volumes.by_id(request.volume_id)
        await asyncio.to_thread(volume.remove, request.path, recursive=request.recursive)
        return Empty()


def known_to_client(url: str) -> bool:
    """Whether the client uploads a blob there in one piece: it knows Amazon's hosts, and private addresses."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_private or address.is_loopback
