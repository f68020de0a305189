#include "common/wire/device_codec.h"

namespace retort::wire {
namespace {

void write_texts(capnp::List<capnp::Text>::Builder out, const std::vector<std::string>& values) {
  for (unsigned i = 0; i < values.size(); ++i) out.set(i, text(values[i]));
}
std::vector<std::string> read_texts(capnp::List<capnp::Text>::Reader in) {
  std::vector<std::string> out;
  for (const auto value : in) out.push_back(text(value));
  return out;
}

void write(schema::DecodeSample::Builder out, const DecodeSample& s) {
  out.setFormat(text(s.format));
  out.setLayers(s.layers);
  out.setHidden(s.hidden);
  out.setHeads(s.heads);
  out.setKvHeads(s.kv_heads);
  out.setHeadDim(s.head_dim);
  out.setFfn(s.ffn);
  out.setVocabulary(s.vocabulary);
  out.setPosition(s.position);
  out.setSeconds(s.seconds);
}
DecodeSample read(schema::DecodeSample::Reader in) {
  return {std::string(text(in.getFormat())),
          in.getLayers(),
          in.getHidden(),
          in.getHeads(),
          in.getKvHeads(),
          in.getHeadDim(),
          in.getFfn(),
          in.getVocabulary(),
          in.getPosition(),
          in.getSeconds()};
}

}  // namespace

void write_labels(capnp::List<schema::Label>::Builder out, const std::map<std::string, std::string>& labels) {
  unsigned i = 0;
  for (const auto& [key, value] : labels) {
    out[i].setKey(text(key));
    out[i++].setValue(text(value));
  }
}
std::map<std::string, std::string> read_labels(capnp::List<schema::Label>::Reader in) {
  std::map<std::string, std::string> out;
  for (const auto label : in) out[text(label.getKey())] = text(label.getValue());
  return out;
}

void write(schema::Profile::Builder out, const DeviceProfile& p) {
  out.setHostname(text(p.hostname));
  out.setArchitecture(text(p.architecture));
  out.setCpuModel(text(p.cpu_model));
  write_texts(out.initIsaFeatures(static_cast<unsigned>(p.isa_features.size())), p.isa_features);
  out.setCores(p.cores);
  out.setCpuAllowance(p.cpu_allowance);
  out.setMemoryBytes(p.memory_bytes);
  out.setMemoryBudgetBytes(p.memory_budget_bytes);
  out.setDiskFreeBytes(p.disk_free_bytes);
  out.setMemoryBandwidthBytesPerSecond(p.memory_bandwidth_bytes_per_second);
  out.setMatvecF32Flops(p.matvec_f32_flops);
  out.setMatvecQ80Ops(p.matvec_q8_0_ops);
  write_texts(out.initAccelerators(static_cast<unsigned>(p.accelerators.size())), p.accelerators);
  out.setEnergyMeter(text(p.energy_meter));
  out.setBudgetSource(text(p.budget_source));
  write_labels(out.initLabels(static_cast<unsigned>(p.labels.size())), p.labels);
  write_texts(out.initNotes(static_cast<unsigned>(p.notes.size())), p.notes);
  out.setAgentVersion(text(p.agent_version));
  out.setUtcOffsetMinutes(p.utc_offset_minutes);
  auto decode = out.initDecode(static_cast<unsigned>(p.decode.size()));
  for (unsigned i = 0; i < p.decode.size(); ++i) write(decode[i], p.decode[i]);
}

DeviceProfile read(schema::Profile::Reader in) {
  DeviceProfile p;
  p.hostname = text(in.getHostname());
  p.architecture = text(in.getArchitecture());
  p.cpu_model = text(in.getCpuModel());
  p.isa_features = read_texts(in.getIsaFeatures());
  p.cores = in.getCores();
  p.cpu_allowance = in.getCpuAllowance();
  p.memory_bytes = in.getMemoryBytes();
  p.memory_budget_bytes = in.getMemoryBudgetBytes();
  p.disk_free_bytes = in.getDiskFreeBytes();
  p.memory_bandwidth_bytes_per_second = in.getMemoryBandwidthBytesPerSecond();
  p.matvec_f32_flops = in.getMatvecF32Flops();
  p.matvec_q8_0_ops = in.getMatvecQ80Ops();
  p.accelerators = read_texts(in.getAccelerators());
  p.energy_meter = text(in.getEnergyMeter());
  p.budget_source = text(in.getBudgetSource());
  p.labels = read_labels(in.getLabels());
  p.notes = read_texts(in.getNotes());
  p.agent_version = text(in.getAgentVersion());
  p.utc_offset_minutes = in.getUtcOffsetMinutes();
  for (const auto sample : in.getDecode()) p.decode.push_back(read(sample));
  return p;
}

void write(schema::Status::Builder out, const DeviceStatus& s) {
  out.setState(text(s.state));
  out.setGeneration(s.generation);
  out.setArtifact(text(s.artifact));
  out.setServeUrl(text(s.serve_url));
  out.setErrorCode(text(s.error_code));
  out.setError(text(s.error));
  out.setBytesDone(s.bytes_done);
  out.setBytesTotal(s.bytes_total);
}

DeviceStatus read(schema::Status::Reader in) {
  DeviceStatus s;
  s.state = text(in.getState());
  s.generation = in.getGeneration();
  s.artifact = text(in.getArtifact());
  s.serve_url = text(in.getServeUrl());
  s.error_code = text(in.getErrorCode());
  s.error = text(in.getError());
  s.bytes_done = in.getBytesDone();
  s.bytes_total = in.getBytesTotal();
  return s;
}

std::string to_bytes(capnp::MallocMessageBuilder& message) {
  std::string out(capnp::computeSerializedSizeInWords(message) * sizeof(capnp::word), '\0');
  kj::ArrayOutputStream stream({reinterpret_cast<kj::byte*>(out.data()), out.size()});
  capnp::writeMessage(stream, message);
  return out;
}

}  // namespace retort::wire
