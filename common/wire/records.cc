#include "common/wire/records.h"

#include "common/wire/device_codec.h"
#include "records.capnp.h"

namespace retort::wire {

std::string encode(const TeacherRecord& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::TeacherRecord>();
  out.setId(text(record.id));
  out.setName(text(record.name));
  out.setImportedMillis(record.imported);
  out.setFamily(text(record.family));
  out.setParameters(record.parameters);
  out.setBytes(record.bytes);
  out.setVocabulary(record.vocabulary);
  out.setContext(record.context);
  return to_bytes(message);
}

template <>
Result<TeacherRecord> decode_record(std::string_view bytes) {
  return parse_message<schema::TeacherRecord>(bytes, "TeacherRecord",
                                              [](schema::TeacherRecord::Reader in) -> Result<TeacherRecord> {
                                                TeacherRecord record;
                                                record.id = text(in.getId());
                                                record.name = text(in.getName());
                                                record.imported = in.getImportedMillis();
                                                record.family = text(in.getFamily());
                                                record.parameters = in.getParameters();
                                                record.bytes = in.getBytes();
                                                record.vocabulary = in.getVocabulary();
                                                record.context = in.getContext();
                                                return record;
                                              });
}

std::string encode(const DatasetRecord& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::DatasetRecord>();
  out.setId(text(record.id));
  out.setName(text(record.name));
  out.setImportedMillis(record.imported);
  out.setDocuments(record.documents);
  out.setBytes(record.bytes);
  return to_bytes(message);
}

template <>
Result<DatasetRecord> decode_record(std::string_view bytes) {
  return parse_message<schema::DatasetRecord>(bytes, "DatasetRecord",
                                              [](schema::DatasetRecord::Reader in) -> Result<DatasetRecord> {
                                                DatasetRecord record;
                                                record.id = text(in.getId());
                                                record.name = text(in.getName());
                                                record.imported = in.getImportedMillis();
                                                record.documents = in.getDocuments();
                                                record.bytes = in.getBytes();
                                                return record;
                                              });
}

std::string encode(const ArtifactRecord& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::ArtifactRecord>();
  out.setSha256(text(record.sha256));
  out.setName(text(record.name));
  out.setCreatedMillis(record.created);
  out.setBytes(record.bytes);
  out.setParameters(record.parameters);
  out.setBitsPerWeight(record.bits_per_weight);
  out.setFormat(text(record.format));
  out.setLabel(text(record.label));
  out.setJob(text(record.job));
  out.setDeviceClass(text(record.device_class));
  out.setTeacher(text(record.teacher));
  out.setEvaluationJson(text(record.evaluation_json));
  return to_bytes(message);
}

template <>
Result<ArtifactRecord> decode_record(std::string_view bytes) {
  return parse_message<schema::ArtifactRecord>(
      bytes, "ArtifactRecord", [](schema::ArtifactRecord::Reader in) -> Result<ArtifactRecord> {
        ArtifactRecord record;
        record.sha256 = text(in.getSha256());
        record.name = text(in.getName());
        record.created = in.getCreatedMillis();
        record.bytes = in.getBytes();
        record.parameters = in.getParameters();
        record.bits_per_weight = in.getBitsPerWeight();
        record.format = text(in.getFormat());
        record.label = text(in.getLabel());
        record.job = text(in.getJob());
        record.device_class = text(in.getDeviceClass());
        record.teacher = text(in.getTeacher());
        record.evaluation_json = text(in.getEvaluationJson());
        return record;
      });
}

std::string encode(const JobRecord& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::JobRecord>();
  out.setId(text(record.id));
  out.setName(text(record.name));
  out.setState(text(record.state));
  out.setDeviceClass(text(record.device_class));
  out.setTeacher(text(record.teacher));
  out.setAssign(record.assign);
  out.setCreatedMillis(record.created);
  out.setStartedMillis(record.started);
  out.setFinishedMillis(record.finished);
  out.setStarts(record.starts);
  out.setCancelRequested(record.cancel_requested);
  out.setErrorCode(text(record.error_code));
  out.setError(text(record.error));
  auto list = out.initArtifacts(static_cast<unsigned>(record.artifacts.size()));
  for (unsigned i = 0; i < record.artifacts.size(); ++i) list.set(i, text(record.artifacts[i]));
  out.setPlan(text(record.plan_json));
  out.setRollout(text(record.rollout_json));
  return to_bytes(message);
}

template <>
Result<JobRecord> decode_record(std::string_view bytes) {
  return parse_message<schema::JobRecord>(bytes, "JobRecord",
                                          [](schema::JobRecord::Reader in) -> Result<JobRecord> {
                                            JobRecord record;
                                            record.id = text(in.getId());
                                            record.name = text(in.getName());
                                            record.state = text(in.getState());
                                            record.device_class = text(in.getDeviceClass());
                                            record.teacher = text(in.getTeacher());
                                            record.assign = in.getAssign();
                                            record.created = in.getCreatedMillis();
                                            record.started = in.getStartedMillis();
                                            record.finished = in.getFinishedMillis();
                                            record.starts = in.getStarts();
                                            record.cancel_requested = in.getCancelRequested();
                                            record.error_code = text(in.getErrorCode());
                                            record.error = text(in.getError());
                                            for (const auto value : in.getArtifacts())
                                              record.artifacts.push_back(text(value));
                                            record.plan_json = text(in.getPlan());
                                            record.rollout_json = text(in.getRollout());
                                            return record;
                                          });
}

std::string encode(const TokenRecord& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::TokenRecord>();
  out.setId(text(record.id));
  out.setKind(text(record.kind));
  out.setName(text(record.name));
  out.setSecretSha256(text(record.secret_sha256));
  out.setCreatedMillis(record.created);
  out.setExpiresMillis(record.expires);
  out.setUsesLeft(record.uses_left);
  auto allowed = out.initAllowed(static_cast<unsigned>(record.allowed.size()));
  for (unsigned i = 0; i < record.allowed.size(); ++i) allowed.set(i, text(record.allowed[i]));
  out.setManual(record.manual);
  return to_bytes(message);
}

template <>
Result<TokenRecord> decode_record(std::string_view bytes) {
  return parse_message<schema::TokenRecord>(bytes, "TokenRecord",
                                            [](schema::TokenRecord::Reader in) -> Result<TokenRecord> {
                                              TokenRecord record;
                                              record.id = text(in.getId());
                                              record.kind = text(in.getKind());
                                              record.name = text(in.getName());
                                              record.secret_sha256 = text(in.getSecretSha256());
                                              record.created = in.getCreatedMillis();
                                              record.expires = in.getExpiresMillis();
                                              record.uses_left = in.getUsesLeft();
                                              for (const auto value : in.getAllowed())
                                                record.allowed.push_back(text(value));
                                              record.manual = in.getManual();
                                              return record;
                                            });
}

std::string encode(const AuditEntry& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::AuditRecord>();
  out.setSequence(record.sequence);
  out.setTimeMillis(record.time);
  out.setActor(text(record.actor));
  out.setAction(text(record.action));
  out.setTarget(text(record.target));
  out.setBefore(text(record.before));
  out.setAfter(text(record.after));
  out.setResult(text(record.result));
  out.setPrevious(text(record.previous));
  out.setHash(text(record.hash));
  return to_bytes(message);
}

template <>
Result<AuditEntry> decode_record(std::string_view bytes) {
  return parse_message<schema::AuditRecord>(bytes, "AuditRecord",
                                            [](schema::AuditRecord::Reader in) -> Result<AuditEntry> {
                                              AuditEntry record;
                                              record.sequence = in.getSequence();
                                              record.time = in.getTimeMillis();
                                              record.actor = text(in.getActor());
                                              record.action = text(in.getAction());
                                              record.target = text(in.getTarget());
                                              record.before = text(in.getBefore());
                                              record.after = text(in.getAfter());
                                              record.result = text(in.getResult());
                                              record.previous = text(in.getPrevious());
                                              record.hash = text(in.getHash());
                                              return record;
                                            });
}

std::string encode(const IdempotencyRecord& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::IdempotencyRecord>();
  out.setFingerprint(text(record.fingerprint));
  out.setCreatedMillis(record.created);
  out.setStatus(record.status);
  out.setBody(text(record.body));
  return to_bytes(message);
}

template <>
Result<IdempotencyRecord> decode_record(std::string_view bytes) {
  return parse_message<schema::IdempotencyRecord>(
      bytes, "IdempotencyRecord", [](schema::IdempotencyRecord::Reader in) -> Result<IdempotencyRecord> {
        IdempotencyRecord record;
        record.fingerprint = text(in.getFingerprint());
        record.created = in.getCreatedMillis();
        record.status = in.getStatus();
        record.body = text(in.getBody());
        return record;
      });
}

std::string encode(const DeviceClass& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::ClassRecord>();
  out.setName(text(record.name));
  out.setPriority(record.priority);
  out.setMinMemoryBytes(record.min_memory_bytes);
  out.setMaxMemoryBytes(record.max_memory_bytes);
  out.setMinCpu(record.min_cpu);
  out.setMaxCpu(record.max_cpu);
  out.setArchitecture(text(record.architecture));
  write_labels(out.initLabels(static_cast<unsigned>(record.labels.size())), record.labels);
  out.setArtifactBytes(record.artifact_bytes);
  out.setServingMemoryBytes(record.serving_memory_bytes);
  out.setP95TokenSeconds(record.p95_token_seconds);
  out.setArtifact(text(record.artifact));
  out.setGeneration(record.generation);
  return to_bytes(message);
}

template <>
Result<DeviceClass> decode_record(std::string_view bytes) {
  return parse_message<schema::ClassRecord>(bytes, "ClassRecord",
                                            [](schema::ClassRecord::Reader in) -> Result<DeviceClass> {
                                              DeviceClass record;
                                              record.name = text(in.getName());
                                              record.priority = in.getPriority();
                                              record.min_memory_bytes = in.getMinMemoryBytes();
                                              record.max_memory_bytes = in.getMaxMemoryBytes();
                                              record.min_cpu = in.getMinCpu();
                                              record.max_cpu = in.getMaxCpu();
                                              record.architecture = text(in.getArchitecture());
                                              record.labels = read_labels(in.getLabels());
                                              record.artifact_bytes = in.getArtifactBytes();
                                              record.serving_memory_bytes = in.getServingMemoryBytes();
                                              record.p95_token_seconds = in.getP95TokenSeconds();
                                              record.artifact = text(in.getArtifact());
                                              record.generation = in.getGeneration();
                                              return record;
                                            });
}

std::string encode(const Site& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::SiteRecord>();
  out.setName(text(record.name));
  auto mirrors = out.initMirrors(static_cast<unsigned>(record.mirrors.size()));
  for (unsigned i = 0; i < mirrors.size(); ++i) mirrors.set(i, text(record.mirrors[i]));
  out.setBytesPerSecond(record.bytes_per_second);
  out.setTransfers(record.transfers);
  return to_bytes(message);
}

template <>
Result<Site> decode_record(std::string_view bytes) {
  return parse_message<schema::SiteRecord>(bytes, "SiteRecord",
                                           [](schema::SiteRecord::Reader in) -> Result<Site> {
                                             Site record;
                                             record.name = text(in.getName());
                                             for (const auto mirror : in.getMirrors())
                                               record.mirrors.push_back(text(mirror));
                                             record.bytes_per_second = in.getBytesPerSecond();
                                             record.transfers = in.getTransfers();
                                             return record;
                                           });
}

std::string encode(const DeviceRecord& record) {
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<schema::DeviceRecord>();
  out.setId(text(record.id));
  out.setName(text(record.name));
  out.setPublicKey(text(record.public_key));
  out.setEnrolledMillis(record.enrolled);
  out.setLastSeenMillis(record.last_seen);
  out.setRevoked(record.revoked);
  out.setEpoch(record.epoch);
  out.setTelemetryBatch(record.telemetry_batch);
  out.setTelemetryDropped(record.telemetry_dropped);
  write(out.initProfile(), record.profile);
  write(out.initStatus(), record.status);
  out.setDeviceClass(text(record.desired.device_class));
  out.setGeneration(record.desired.generation);
  out.setArtifact(text(record.desired.artifact));
  out.setPending(record.pending);
  out.setPreviousKey(text(record.previous_key));
  out.setToken(text(record.token));
  out.setRotateKey(record.rotate_key);
  return to_bytes(message);
}

template <>
Result<DeviceRecord> decode_record(std::string_view bytes) {
  return parse_message<schema::DeviceRecord>(bytes, "DeviceRecord",
                                             [](schema::DeviceRecord::Reader in) -> Result<DeviceRecord> {
                                               DeviceRecord record;
                                               record.id = text(in.getId());
                                               record.name = text(in.getName());
                                               record.public_key = text(in.getPublicKey());
                                               record.enrolled = in.getEnrolledMillis();
                                               record.last_seen = in.getLastSeenMillis();
                                               record.revoked = in.getRevoked();
                                               record.epoch = in.getEpoch();
                                               record.telemetry_batch = in.getTelemetryBatch();
                                               record.telemetry_dropped = in.getTelemetryDropped();
                                               record.profile = read(in.getProfile());
                                               record.status = read(in.getStatus());
                                               record.desired.device_class = text(in.getDeviceClass());
                                               record.desired.generation = in.getGeneration();
                                               record.desired.artifact = text(in.getArtifact());
                                               record.pending = in.getPending();
                                               record.previous_key = text(in.getPreviousKey());
                                               record.token = text(in.getToken());
                                               record.rotate_key = in.getRotateKey();
                                               return record;
                                             });
}

}  // namespace retort::wire
