@0xe94d27b1506fa3c8;
# What the coordinator keeps in its store. EVOLUTION.md says what may change.
using Cxx = import "/capnp/c++.capnp";
using import "device.capnp".Profile;
using import "device.capnp".Status;
using import "device.capnp".Label;
$Cxx.namespace("retort::schema");

struct DeviceRecord {
  id @0 :Text;
  name @1 :Text;
  publicKey @2 :Text;              # Z85
  enrolledMillis @3 :Int64;
  lastSeenMillis @4 :Int64;
  revoked @5 :Bool;
  epoch @6 :UInt64;
  telemetryBatch @7 :UInt64;       # the last one on disk
  telemetryDropped @8 :UInt64;
  profile @9 :Profile;
  status @10 :Status;
  deviceClass @11 :Text;
  generation @12 :UInt64;          # of its desired state
  artifact @13 :Text;              # desired
  pending @14 :Bool;               # waits for an operator's accept
  previousKey @15 :Text;           # Z85; after a rotation, until the device has come with the new one
  token @16 :Text;                 # id of the token that it came with
  rotateKey @17 :Bool;             # is to make itself a new key
}

struct ClassRecord {
  name @0 :Text;
  priority @1 :Int32;
  minMemoryBytes @2 :UInt64;
  maxMemoryBytes @3 :UInt64;
  minCpu @4 :Float64;
  maxCpu @5 :Float64;
  architecture @6 :Text;
  labels @7 :List(Label);
  artifactBytes @8 :UInt64;
  servingMemoryBytes @9 :UInt64;
  p95TokenSeconds @10 :Float64;
  artifact @11 :Text;
  generation @12 :UInt64;
}

struct SiteRecord {
  name @0 :Text;                   # value of its devices' label "site"
  mirrors @1 :List(Text);
  bytesPerSecond @2 :UInt64;       # that the coordinator sends to it; 0: any
  transfers @3 :UInt32;            # devices at a time; 0: any
}

struct TeacherRecord {
  id @0 :Text;                     # SHA-256 over its files
  name @1 :Text;
  importedMillis @2 :Int64;
  family @3 :Text;
  parameters @4 :UInt64;
  bytes @5 :UInt64;
  vocabulary @6 :UInt32;
  context @7 :UInt32;
}

struct DatasetRecord {
  id @0 :Text;                     # SHA-256 of its file
  name @1 :Text;
  importedMillis @2 :Int64;
  documents @3 :UInt64;
  bytes @4 :UInt64;
}

struct ArtifactRecord {
  sha256 @0 :Text;
  name @1 :Text;
  createdMillis @2 :Int64;
  bytes @3 :UInt64;
  parameters @4 :UInt64;
  bitsPerWeight @5 :Float64;
  format @6 :Text;
  label @7 :Text;
  job @8 :Text;
  deviceClass @9 :Text;
  teacher @10 :Text;
  evaluationJson @11 :Text;
  signedManifest @12 :Data;        # unused since v0.2
}

struct JobRecord {
  id @0 :Text;
  name @1 :Text;
  state @2 :Text;                  # queued, running, succeeded, failed, cancelled
  deviceClass @3 :Text;
  teacher @4 :Text;
  assign @5 :Bool;
  createdMillis @6 :Int64;
  startedMillis @7 :Int64;
  finishedMillis @8 :Int64;
  starts @9 :UInt32;
  cancelRequested @10 :Bool;
  errorCode @11 :Text;
  error @12 :Text;
  artifacts @13 :List(Text);
  plan @14 :Text;                  # JSON, for people
  rollout @15 :Text;               # JSON, the request for a rollout of what it makes
}

struct TokenRecord {
  id @0 :Text;
  kind @1 :Text;                   # operator, enrolment
  name @2 :Text;
  secretSha256 @3 :Text;
  createdMillis @4 :Int64;
  expiresMillis @5 :Int64;         # 0: never
  usesLeft @6 :Int64;              # -1: without limit
  allowed @7 :List(Text);          # device keys (Z85) or hardware ids that may use it; none: any
  manual @8 :Bool;                 # devices that come with it wait for an accept
}

struct AuditRecord {
  sequence @0 :UInt64;
  timeMillis @1 :Int64;
  actor @2 :Text;
  action @3 :Text;
  target @4 :Text;
  before @5 :Text;                 # SHA-256 of what the target's GET showed
  after @6 :Text;
  result @7 :Text;                 # ok, an error's code, interrupted; empty: under way
  previous @8 :Text;
  hash @9 :Text;
}

struct IdempotencyRecord {
  fingerprint @0 :Text;            # SHA-256 of the request
  createdMillis @1 :Int64;
  status @2 :UInt16;
  body @3 :Text;                   # empty where it held a secret
}

struct RolloutRecord {
  id @0 :Text;
  name @1 :Text;
  createdMillis @2 :Int64;
  specJson @3 :Text;
  canaryJson @4 :Text;
  tracks @5 :List(Track);
  events @6 :UInt64;               # so many were noted

  struct Track {
    deviceClass @0 :Text;
    artifact @1 :Text;
    before @2 :Text;
    state @3 :Text;
    pausedFrom @4 :Text;
    reason @5 :Text;
    stage @6 :UInt32;
    sinceMillis @7 :Int64;
    soakUntilMillis @8 :Int64;
    inForce @9 :Bool;
    gatesJson @10 :Text;
  }
}

struct RolloutMember {
  rollout @0 :Text;
  device @1 :Text;
  deviceClass @2 :Text;
  holdout @3 :Bool;
  stage @4 :UInt32;
  state @5 :Text;
  toldMillis @6 :Int64;
  settledMillis @7 :Int64;
  errorCode @8 :Text;
  error @9 :Text;
  canaryArtifact @10 :Text;
  canaryAsked @11 :UInt32;
  canaryAgreed @12 :UInt32;
  afterGeneration @13 :UInt64;
}

struct RolloutEvent {
  rollout @0 :Text;
  sequence @1 :UInt64;
  timeMillis @2 :Int64;
  deviceClass @3 :Text;
  state @4 :Text;
  text @5 :Text;
}
