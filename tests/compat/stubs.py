"""Makes Python modules of proto/*.proto at run time, in a temporary directory, and imports them.

Whoever imports this gets `pb` (messages), `kvpb` (keys and events) and `SERVICES`: full method name -> (request type,
response type). Nothing generated is ever committed.
"""

import atexit
import importlib
import pathlib
import shutil
import sys
import tempfile

from grpc_tools import protoc
import grpc_tools

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _generate():
    out = tempfile.mkdtemp(prefix="everwatch-stubs-")
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = ["kv.proto", "auth.proto", "rpc.proto", "lock.proto", "election.proto"]
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--python_out={out}", *files]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    sys.path.insert(0, out)


_generate()
pb = importlib.import_module("rpc_pb2")
kvpb = importlib.import_module("kv_pb2")
authpb = importlib.import_module("auth_pb2")
lockpb = importlib.import_module("lock_pb2")
electionpb = importlib.import_module("election_pb2")

SERVICES = {}
for _module in (pb, lockpb, electionpb):
    for _service in _module.DESCRIPTOR.services_by_name.values():
        for _method in _service.methods:
            SERVICES[f"/{_service.full_name}/{_method.name}"] = (
                _method.input_type._concrete_class,
                _method.output_type._concrete_class,
            )
