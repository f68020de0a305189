@0xd1c86f0a4b3e9275;
# One frame of the fleet link. docs/protocol.md tells who sends what, and when.
using Cxx = import "/capnp/c++.capnp";
using import "device.capnp".Profile;
using import "device.capnp".Status;
using import "device.capnp".Desired;
using import "device.capnp".Point;
$Cxx.namespace("retort::schema");

struct Envelope {
  version @0 :UInt16;
  epoch @1 :UInt64;
  sequence @2 :UInt64;
  acknowledged @3 :UInt64;
  payload :union {
    unknown @4 :Void;              # what a default-initialised frame reads as
    enrol @5 :Enrol;
    hello @6 :Hello;
    profileUpdate @7 :Profile;
    statusReport @8 :Status;
    heartbeat @9 :UInt64;          # generation
    manifestRequest @10 :Text;     # unused since v0.2
    chunkRequest @11 :ChunkRequest;
    telemetryBatch @12 :TelemetryBatch;
    enrolled @13 :Enrolled;
    welcome @14 :Welcome;
    desired @15 :Desired;
    manifest @16 :Manifest;        # unused since v0.2
    chunk @17 :Chunk;
    telemetryAck @18 :UInt64;      # batch
    comeBack @19 :UInt32;          # after this many milliseconds
    refused @20 :Refused;
    unsupported @21 :UInt16;       # the kind that was not known
    canary @22 :Canary;
    canaryResult @23 :CanaryResult;
    metadataRequest @24 :MetadataRequest;
    metadata @25 :Metadata;
    keyRotation @26 :KeyRotation;
    keyRotated @27 :Text;          # the new public key, Z85: it is on record now
    rotateKey @28 :Void;           # the device is to make itself a new key
    chunkWait @29 :ChunkWait;
  }

  struct Enrol {
    tokenSecret @0 :Text;
    name @1 :Text;
    profile @2 :Profile;
    hardwareId @3 :Text;           # what the device calls itself, for pre-authorised tokens
  }
  struct Hello {
    deviceId @0 :Text;
    agentVersion @1 :Text;
    status @2 :Status;
    generation @3 :UInt64;         # the newest that it was ever assigned
  }
  struct ChunkRequest {
    artifact @0 :Text;
    offset @1 :UInt64;
    length @2 :UInt32;
  }
  struct TelemetryBatch {
    batch @0 :UInt64;
    droppedBefore @1 :UInt64;
    points @2 :List(Point);
    follows @3 :UInt64;            # the batch before it, where that one is not acknowledged yet; else 0
  }
  struct Enrolled {
    deviceId @0 :Text;
    signingKey @1 :Text;           # unused since v0.2
    root @2 :Data;                 # root metadata (JSON) that the device begins with
  }
  struct Welcome {
    heartbeatMillis @0 :UInt32;
    chunkCredit @1 :UInt32;
    coordinatorTimeMillis @2 :Int64;
    telemetryAcknowledged @3 :UInt64;
  }
  struct Manifest {
    artifact @0 :Text;
    signedJson @1 :Data;
  }
  struct MetadataRequest {
    name @0 :Text;                 # "timestamp.json", "7.root.json", "manifests/SHA256.json"
    offset @1 :UInt64;
  }
  struct Metadata {
    name @0 :Text;
    offset @1 :UInt64;
    total @2 :UInt64;              # bytes of the whole file
    bytes @3 :Data;
  }
  struct KeyRotation {
    publicKey @0 :Text;            # the new CURVE key, Z85
    proof @1 :Data;                # that the sender has its secret half (docs/protocol.md)
  }
  struct Chunk {
    artifact @0 :Text;
    offset @1 :UInt64;
    bytes @2 :Data;
  }
  struct ChunkWait {
    artifact @0 :Text;
    millis @1 :UInt32;             # it is heard of again within so many
  }
  struct Canary {
    id @0 :Text;                   # of the rollout
    artifact @1 :Text;             # that must be served when it is asked
    questions @2 :List(Question);
    struct Question {
      prompt @0 :Text;
      answer @1 :Text;             # the teacher's next token
    }
  }
  struct CanaryResult {
    id @0 :Text;
    artifact @1 :Text;
    asked @2 :UInt32;
    agreed @3 :UInt32;
  }
  struct Refused {
    about @0 :Text;
    code @1 :Text;
    message @2 :Text;
  }
}
