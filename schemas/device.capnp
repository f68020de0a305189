@0xb7a3c5d4e1f20817;
# What a device is and does. Field numbers never change their meaning (EVOLUTION.md).
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("retort::schema");

struct Label {
  key @0 :Text;
  value @1 :Text;
}

struct Profile {
  hostname @0 :Text;
  architecture @1 :Text;
  cpuModel @2 :Text;
  isaFeatures @3 :List(Text);
  cores @4 :UInt32;
  cpuAllowance @5 :Float64;        # cores' worth
  memoryBytes @6 :UInt64;
  memoryBudgetBytes @7 :UInt64;
  diskFreeBytes @8 :UInt64;
  memoryBandwidthBytesPerSecond @9 :Float64;
  matvecF32Flops @10 :Float64;
  matvecQ80Ops @11 :Float64;
  accelerators @12 :List(Text);
  energyMeter @13 :Text;
  budgetSource @14 :Text;
  labels @15 :List(Label);
  notes @16 :List(Text);
  agentVersion @17 :Text;
  utcOffsetMinutes @18 :Int32;     # local time is UTC and so many minutes
  decode @19 :List(DecodeSample);  # how fast its retort-serve generates; empty: not measured
}

struct DecodeSample {
  format @0 :Text;                 # of the weights: Q8_0
  layers @1 :UInt32;
  hidden @2 :UInt32;
  heads @3 :UInt32;
  kvHeads @4 :UInt32;
  headDim @5 :UInt32;
  ffn @6 :UInt32;
  vocabulary @7 :UInt32;
  position @8 :UInt32;             # tokens in the context before
  seconds @9 :Float64;             # for one generated token
}

struct Status {
  state @0 :Text;
  generation @1 :UInt64;
  artifact @2 :Text;               # SHA-256, hexadecimal
  serveUrl @3 :Text;
  errorCode @4 :Text;
  error @5 :Text;
  bytesDone @6 :UInt64;
  bytesTotal @7 :UInt64;
}

struct Desired {
  generation @0 :UInt64;
  deviceClass @1 :Text;
  artifact @2 :Text;
  assignment @3 :Data;             # the same, signed for this device: what counts
  mirrors @4 :List(Text);          # HTTP addresses that may have the artifact too; believed in nothing
}

struct Point {
  timeMillis @0 :Int64;            # Unix epoch, UTC
  metric @1 :Text;
  value @2 :Float64;
}
