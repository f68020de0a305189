#include "common/wire/device_codec.h"
#include "common/wire/records.h"
#include "records.capnp.h"

namespace retort::wire {

std::string encode(const RolloutRecord& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::RolloutRecord>();
  out.setId(text(record.id));
  out.setName(text(record.name));
  out.setCreatedMillis(record.created);
  out.setSpecJson(text(record.spec_json));
  out.setCanaryJson(text(record.canary_json));
  out.setEvents(record.events);
  auto tracks = out.initTracks(static_cast<unsigned>(record.tracks.size()));
  for (unsigned i = 0; i < record.tracks.size(); ++i) {
    const RolloutTrack& track = record.tracks[i];
    tracks[i].setDeviceClass(text(track.device_class));
    tracks[i].setArtifact(text(track.artifact));
    tracks[i].setBefore(text(track.before));
    tracks[i].setState(text(track.state));
    tracks[i].setPausedFrom(text(track.paused_from));
    tracks[i].setReason(text(track.reason));
    tracks[i].setStage(track.stage);
    tracks[i].setSinceMillis(track.since);
    tracks[i].setSoakUntilMillis(track.soak_until);
    tracks[i].setInForce(track.in_force);
    tracks[i].setGatesJson(text(track.gates_json));
  }
  return to_bytes(message);
}

template <>
Result<RolloutRecord> decode_record(std::string_view bytes) {
  return parse_message<schema::RolloutRecord>(bytes, "RolloutRecord",
                                              [](schema::RolloutRecord::Reader in) -> Result<RolloutRecord> {
                                                RolloutRecord record;
                                                record.id = text(in.getId());
                                                record.name = text(in.getName());
                                                record.created = in.getCreatedMillis();
                                                record.spec_json = text(in.getSpecJson());
                                                record.canary_json = text(in.getCanaryJson());
                                                record.events = in.getEvents();
                                                for (const auto track : in.getTracks()) {
                                                  RolloutTrack& out = record.tracks.emplace_back();
                                                  out.device_class = text(track.getDeviceClass());
                                                  out.artifact = text(track.getArtifact());
                                                  out.before = text(track.getBefore());
                                                  out.state = text(track.getState());
                                                  out.paused_from = text(track.getPausedFrom());
                                                  out.reason = text(track.getReason());
                                                  out.stage = track.getStage();
                                                  out.since = track.getSinceMillis();
                                                  out.soak_until = track.getSoakUntilMillis();
                                                  out.in_force = track.getInForce();
                                                  out.gates_json = text(track.getGatesJson());
                                                }
                                                return record;
                                              });
}

std::string encode(const RolloutMember& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::RolloutMember>();
  out.setRollout(text(record.rollout));
  out.setDevice(text(record.device));
  out.setDeviceClass(text(record.device_class));
  out.setHoldout(record.holdout);
  out.setStage(record.stage);
  out.setState(text(record.state));
  out.setToldMillis(record.told);
  out.setSettledMillis(record.settled);
  out.setAfterGeneration(record.after_generation);
  out.setErrorCode(text(record.error_code));
  out.setError(text(record.error));
  out.setCanaryArtifact(text(record.canary_artifact));
  out.setCanaryAsked(record.canary_asked);
  out.setCanaryAgreed(record.canary_agreed);
  return to_bytes(message);
}

template <>
Result<RolloutMember> decode_record(std::string_view bytes) {
  return parse_message<schema::RolloutMember>(bytes, "RolloutMember",
                                              [](schema::RolloutMember::Reader in) -> Result<RolloutMember> {
                                                RolloutMember record;
                                                record.rollout = text(in.getRollout());
                                                record.device = text(in.getDevice());
                                                record.device_class = text(in.getDeviceClass());
                                                record.holdout = in.getHoldout();
                                                record.stage = in.getStage();
                                                record.state = text(in.getState());
                                                record.told = in.getToldMillis();
                                                record.settled = in.getSettledMillis();
                                                record.after_generation = in.getAfterGeneration();
                                                record.error_code = text(in.getErrorCode());
                                                record.error = text(in.getError());
                                                record.canary_artifact = text(in.getCanaryArtifact());
                                                record.canary_asked = in.getCanaryAsked();
                                                record.canary_agreed = in.getCanaryAgreed();
                                                return record;
                                              });
}

std::string encode(const RolloutEvent& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::RolloutEvent>();
  out.setRollout(text(record.rollout));
  out.setSequence(record.sequence);
  out.setTimeMillis(record.time);
  out.setDeviceClass(text(record.device_class));
  out.setState(text(record.state));
  out.setText(text(record.text));
  return to_bytes(message);
}

template <>
Result<RolloutEvent> decode_record(std::string_view bytes) {
  return parse_message<schema::RolloutEvent>(bytes, "RolloutEvent",
                                             [](schema::RolloutEvent::Reader in) -> Result<RolloutEvent> {
                                               RolloutEvent record;
                                               record.rollout = text(in.getRollout());
                                               record.sequence = in.getSequence();
                                               record.time = in.getTimeMillis();
                                               record.device_class = text(in.getDeviceClass());
                                               record.state = text(in.getState());
                                               record.text = text(in.getText());
                                               return record;
                                             });
}

}  // namespace retort::wire
