#include "common/wire/messages.h"

#include <kj/array.h>

#include <cstring>

#include "common/wire/device_codec.h"
#include "envelope.capnp.h"

namespace retort::wire {
namespace {

template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <typename... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

capnp::Data::Reader data(const std::string& bytes) {
  return capnp::Data::Reader(reinterpret_cast<const capnp::byte*>(bytes.data()), bytes.size());
}
std::string bytes(capnp::Data::Reader in) {
  return std::string(reinterpret_cast<const char*>(in.begin()), in.size());
}

}  // namespace

std::string encode(const Envelope& envelope) {
  // Most messages fit: no memory of 8 KB to take and to clear. A chunk's is kept for the next one; the
  // builder leaves it cleared.
  capnp::word first[64] = {};
  thread_local kj::Array<capnp::word> large;
  kj::ArrayPtr<capnp::word> scratch(first, std::size(first));
  if (const auto* chunk = std::get_if<Chunk>(&envelope.payload);
      chunk && chunk->bytes.size() <= kMaxChunkBytes) {
    const std::size_t words = chunk->bytes.size() / sizeof(capnp::word) + std::size(first);
    if (large.size() < words) {
      large = kj::heapArray<capnp::word>(words);
      std::memset(static_cast<void*>(large.begin()), 0, words * sizeof(capnp::word));
    }
    scratch = large.asPtr();
  }
  capnp::MallocMessageBuilder message(scratch);
  auto root = message.initRoot<schema::Envelope>();
  root.setVersion(envelope.version);
  root.setEpoch(envelope.epoch);
  root.setSequence(envelope.sequence);
  root.setAcknowledged(envelope.acknowledged);
  auto out = root.initPayload();
  std::visit(Overloaded{
                 [&](const Enrol& m) {
                   auto b = out.initEnrol();
                   b.setTokenSecret(text(m.token_secret));
                   b.setName(text(m.name));
                   write(b.initProfile(), m.profile);
                   b.setHardwareId(text(m.hardware_id));
                 },
                 [&](const Hello& m) {
                   auto b = out.initHello();
                   b.setDeviceId(text(m.device_id));
                   b.setAgentVersion(text(m.agent_version));
                   write(b.initStatus(), m.status);
                   b.setGeneration(m.generation);
                 },
                 [&](const ProfileUpdate& m) { write(out.initProfileUpdate(), m.profile); },
                 [&](const StatusReport& m) { write(out.initStatusReport(), m.status); },
                 [&](const Heartbeat& m) { out.setHeartbeat(m.generation); },
                 [&](const MetadataRequest& m) {
                   auto b = out.initMetadataRequest();
                   b.setName(text(m.name));
                   b.setOffset(m.offset);
                 },
                 [&](const KeyRotation& m) {
                   auto b = out.initKeyRotation();
                   b.setPublicKey(text(m.public_key));
                   b.setProof(data(m.proof));
                 },
                 [&](const RotateKey&) { out.setRotateKey(); },
                 [&](const KeyRotated& m) { out.setKeyRotated(text(m.public_key)); },
                 [&](const ChunkRequest& m) {
                   auto b = out.initChunkRequest();
                   b.setArtifact(text(m.artifact));
                   b.setOffset(m.offset);
                   b.setLength(m.length);
                 },
                 [&](const TelemetryBatch& m) {
                   auto b = out.initTelemetryBatch();
                   b.setBatch(m.batch);
                   b.setDroppedBefore(m.dropped_before);
                   b.setFollows(m.follows);
                   auto points = b.initPoints(static_cast<unsigned>(m.points.size()));
                   for (unsigned i = 0; i < m.points.size(); ++i) {
                     points[i].setTimeMillis(m.points[i].time);
                     points[i].setMetric(text(m.points[i].metric));
                     points[i].setValue(m.points[i].value);
                   }
                 },
                 [&](const Enrolled& m) {
                   auto b = out.initEnrolled();
                   b.setDeviceId(text(m.device_id));
                   b.setRoot(data(m.root));
                 },
                 [&](const Welcome& m) {
                   auto b = out.initWelcome();
                   b.setHeartbeatMillis(m.heartbeat_millis);
                   b.setChunkCredit(m.chunk_credit);
                   b.setCoordinatorTimeMillis(m.coordinator_time);
                   b.setTelemetryAcknowledged(m.telemetry_acknowledged);
                 },
                 [&](const Desired& m) {
                   auto b = out.initDesired();
                   b.setGeneration(m.desired.generation);
                   b.setDeviceClass(text(m.desired.device_class));
                   b.setArtifact(text(m.desired.artifact));
                   b.setAssignment(data(m.assignment));
                   auto mirrors = b.initMirrors(static_cast<unsigned>(m.mirrors.size()));
                   for (unsigned i = 0; i < m.mirrors.size(); ++i) mirrors.set(i, text(m.mirrors[i]));
                 },
                 [&](const Metadata& m) {
                   auto b = out.initMetadata();
                   b.setName(text(m.name));
                   b.setOffset(m.offset);
                   b.setTotal(m.total);
                   b.setBytes(data(m.bytes));
                 },
                 [&](const Chunk& m) {
                   auto b = out.initChunk();
                   b.setArtifact(text(m.artifact));
                   b.setOffset(m.offset);
                   b.setBytes(data(m.bytes));
                 },
                 [&](const ChunkWait& m) {
                   auto b = out.initChunkWait();
                   b.setArtifact(text(m.artifact));
                   b.setMillis(m.millis);
                 },
                 [&](const TelemetryAck& m) { out.setTelemetryAck(m.batch); },
                 [&](const ComeBack& m) { out.setComeBack(m.after_millis); },
                 [&](const Refused& m) {
                   auto b = out.initRefused();
                   b.setAbout(text(m.about));
                   b.setCode(text(m.code));
                   b.setMessage(text(m.message));
                 },
                 [&](const Unsupported& m) { out.setUnsupported(m.kind); },
                 [&](const Canary& m) {
                   auto b = out.initCanary();
                   b.setId(text(m.id));
                   b.setArtifact(text(m.artifact));
                   auto questions = b.initQuestions(static_cast<unsigned>(m.questions.size()));
                   for (unsigned i = 0; i < m.questions.size(); ++i) {
                     questions[i].setPrompt(text(m.questions[i].prompt));
                     questions[i].setAnswer(text(m.questions[i].answer));
                   }
                 },
                 [&](const CanaryResult& m) {
                   auto b = out.initCanaryResult();
                   b.setId(text(m.id));
                   b.setArtifact(text(m.artifact));
                   b.setAsked(m.asked);
                   b.setAgreed(m.agreed);
                 },
             },
             envelope.payload);
  return to_bytes(message);
}

Result<Envelope> decode(std::string_view frame) {
  if (frame.size() > kMaxFrameBytes)
    return fail(ErrorCode::kOutOfBudget, "frame", "{} bytes, the limit is {}", frame.size(), kMaxFrameBytes);
  return parse_message<schema::Envelope>(
      frame, "frame", [](schema::Envelope::Reader root) -> Result<Envelope> {
        Envelope out;
        out.version = root.getVersion();
        out.epoch = root.getEpoch();
        out.sequence = root.getSequence();
        out.acknowledged = root.getAcknowledged();
        const auto in = root.getPayload();
        using Which = schema::Envelope::Payload::Which;
        switch (in.which()) {
          case Which::ENROL:
            out.payload = Enrol{text(in.getEnrol().getTokenSecret()), text(in.getEnrol().getName()),
                                read(in.getEnrol().getProfile()), text(in.getEnrol().getHardwareId())};
            break;
          case Which::HELLO:
            out.payload = Hello{text(in.getHello().getDeviceId()), text(in.getHello().getAgentVersion()),
                                read(in.getHello().getStatus()), in.getHello().getGeneration()};
            break;
          case Which::PROFILE_UPDATE:
            out.payload = ProfileUpdate{read(in.getProfileUpdate())};
            break;
          case Which::STATUS_REPORT:
            out.payload = StatusReport{read(in.getStatusReport())};
            break;
          case Which::HEARTBEAT:
            out.payload = Heartbeat{in.getHeartbeat()};
            break;
          case Which::METADATA_REQUEST:
            out.payload =
                MetadataRequest{text(in.getMetadataRequest().getName()), in.getMetadataRequest().getOffset()};
            break;
          case Which::KEY_ROTATION:
            out.payload =
                KeyRotation{text(in.getKeyRotation().getPublicKey()), bytes(in.getKeyRotation().getProof())};
            break;
          case Which::ROTATE_KEY:
            out.payload = RotateKey{};
            break;
          case Which::KEY_ROTATED:
            out.payload = KeyRotated{text(in.getKeyRotated())};
            break;
          case Which::CHUNK_REQUEST: {
            const auto r = in.getChunkRequest();
            out.payload = ChunkRequest{text(r.getArtifact()), r.getOffset(), r.getLength()};
            break;
          }
          case Which::TELEMETRY_BATCH: {
            const auto r = in.getTelemetryBatch();
            TelemetryBatch batch{r.getBatch(), r.getDroppedBefore(), {}, r.getFollows()};
            for (const auto point : r.getPoints())
              batch.points.push_back({point.getTimeMillis(), text(point.getMetric()), point.getValue()});
            out.payload = std::move(batch);
            break;
          }
          case Which::ENROLLED:
            out.payload = Enrolled{text(in.getEnrolled().getDeviceId()), bytes(in.getEnrolled().getRoot())};
            break;
          case Which::WELCOME: {
            const auto r = in.getWelcome();
            out.payload = Welcome{r.getHeartbeatMillis(), r.getChunkCredit(), r.getCoordinatorTimeMillis(),
                                  r.getTelemetryAcknowledged()};
            break;
          }
          case Which::DESIRED: {
            const auto r = in.getDesired();
            Desired desired{{r.getGeneration(), text(r.getDeviceClass()), text(r.getArtifact())},
                            bytes(r.getAssignment()),
                            {}};
            for (const auto mirror : r.getMirrors()) desired.mirrors.push_back(text(mirror));
            out.payload = std::move(desired);
            break;
          }
          case Which::METADATA: {
            const auto r = in.getMetadata();
            out.payload = Metadata{text(r.getName()), r.getOffset(), r.getTotal(), bytes(r.getBytes())};
            break;
          }
          case Which::CHUNK:
            out.payload = Chunk{text(in.getChunk().getArtifact()), in.getChunk().getOffset(),
                                bytes(in.getChunk().getBytes())};
            break;
          case Which::CHUNK_WAIT:
            out.payload = ChunkWait{text(in.getChunkWait().getArtifact()), in.getChunkWait().getMillis()};
            break;
          case Which::TELEMETRY_ACK:
            out.payload = TelemetryAck{in.getTelemetryAck()};
            break;
          case Which::COME_BACK:
            out.payload = ComeBack{in.getComeBack()};
            break;
          case Which::REFUSED:
            out.payload = Refused{text(in.getRefused().getAbout()), text(in.getRefused().getCode()),
                                  text(in.getRefused().getMessage())};
            break;
          case Which::UNSUPPORTED:
            out.payload = Unsupported{in.getUnsupported()};
            break;
          case Which::CANARY: {
            const auto r = in.getCanary();
            Canary canary{text(r.getId()), text(r.getArtifact()), {}};
            for (const auto question : r.getQuestions())
              canary.questions.push_back({text(question.getPrompt()), text(question.getAnswer())});
            out.payload = std::move(canary);
            break;
          }
          case Which::CANARY_RESULT: {
            const auto r = in.getCanaryResult();
            out.payload = CanaryResult{text(r.getId()), text(r.getArtifact()), r.getAsked(), r.getAgreed()};
            break;
          }
          default:
            out.payload = Unsupported{static_cast<std::uint16_t>(in.which())};
            break;
        }
        return out;
      });
}

}  // namespace retort::wire
