#include "coordinator/worker/run_folder.h"

#include <fnmatch.h>

#include "common/core/sha256.h"
#include "common/gguf/gguf.h"
#include "coordinator/worker/run.h"

namespace retort {

namespace fs = std::filesystem;

namespace {
at::Tensor values_of(const SafeTensor& tensor) {
  at::Tensor values =
      at::empty(std::vector<std::int64_t>(tensor.shape.begin(), tensor.shape.end()), at::kFloat);
  tensor.read_f32(0, {values.data_ptr<float>(), static_cast<std::size_t>(values.numel())});
  return values;
}

/// Whether a file has a name that a RunFolder gives: another's may begin alike.
bool is_weights(const std::string& name) {
  return ::fnmatch("checkpoint-+([0-9])-+([0-9])?(-best).safetensors?(.gguf)", name.c_str(), FNM_EXTMATCH) ==
         0;
}

/// A value as text that is the same after it was written and read: JSON may change a number's last digit.
std::string steady_text(const json::value& value) {
  std::string out;
  if (value.is_double()) return fmt::format("{:.6g}", value.get_double());
  if (const json::array* array = value.if_array()) {
    for (const json::value& element : *array) out += steady_text(element) + ",";
    return "[" + out + "]";
  }
  const json::object* object = value.if_object();
  if (object == nullptr) return json::serialize(value);
  for (const auto& [key, member] : *object)
    out += json::serialize(json::string(key)) + ":" + steady_text(member) + ",";
  return "{" + out + "}";
}

/// Of all that a state says, beside its check value.
std::string check_of(json::object state) {
  state.erase("check");
  return sha256_hex(steady_text(state));
}

/// What else is known of a network, as tensors. quantize.activations': "s." and a matrix's name, its input's
/// scale; "b.input" and "b.output" of classifiers, scale and zero point. prune.structured's: "o." and a
/// layer, the layer that it was and its heads.
std::map<std::string, at::Tensor> other_facts(const Network& network) {
  std::map<std::string, at::Tensor> out;
  for (std::size_t i = 0; i < network.origins.size(); ++i) {
    std::vector<std::int64_t> values{network.origins[i].layer};
    values.insert(values.end(), network.origins[i].heads.begin(), network.origins[i].heads.end());
    out["o." + std::to_string(i)] = at::tensor(values, at::kLong).to(at::kFloat);
  }
  for (const auto& [name, scale] : network.input_scales) out["s." + name] = at::full({1}, scale);
  if (!network.classifier) return out;
  for (const auto& [name, bytes] : {std::pair{"b.input", &network.classifier->input_bytes},
                                    std::pair{"b.output", &network.classifier->output_bytes}})
    if (*bytes) out[name] = at::tensor({(*bytes)->scale, static_cast<float>((*bytes)->zero_point)});
  return out;
}
}  // namespace

Result<void> RunFolder::check_stop() const {
  std::error_code error;
  if (fs::exists(folder_ / "cancel", error))
    return fail(ErrorCode::kCancelled, folder_.string(), "cancelled on request");
  if (run_interrupted)
    return fail(ErrorCode::kCancelled, folder_.string(), "interrupted; run again to go on");
  return {};
}

Result<void> RunFolder::load(const RunIdentity& identity) {
  identity_ = identity;
  const fs::path path = folder_ / "state.json";
  if (fs::exists(path)) {
    const std::string text = RETORT_TRY(read_file(path));
    const auto read = [&]() -> Result<void> {
      const json::value value = RETORT_TRY(parse_json(text, path.string()));
      return read_state(*RETORT_TRY(as_object(value, path.string())), path.string());
    };
    if (const auto there = read(); !there) {
      if (there.error().code == ErrorCode::kConflict) return there;
      return fail(
          ErrorCode::kCorrupt, there.error().where,
          "{}: this state is not what was written, or not by this version; empty the folder and begin anew",
          there.error().message);
    }
  }
  saved_best_ = state.best;
  sweep();  // a crash left them
  return {};
}

void RunFolder::sweep() const {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder_, ignored)) {
    const std::string name = entry.path().filename().string();
    if (is_weights(name) && name != state.checkpoint && entry.path() != encoded_file(state.checkpoint) &&
        name != state.best && name != saved_best_)
      fs::remove(entry.path(), ignored);
  }
}

Result<void> RunFolder::read_state(const json::object& object, const std::string& where) {
  const std::string recipe = RETORT_TRY(json_string(object, "recipe_sha256", where));
  const std::string teacher = RETORT_TRY(json_string(object, "teacher_sha256", where));
  if (recipe != identity_.recipe_sha256 || teacher != identity_.teacher_sha256)
    return fail(ErrorCode::kConflict, folder_.string(),
                "this folder holds a run of another {}; give another --out, or empty it",
                recipe != identity_.recipe_sha256 ? "recipe" : "teacher");
  if (RETORT_TRY(json_string(object, "check", where)) != check_of(object))
    return fail(ErrorCode::kCorrupt, where, "its check value is another's");
  state.pass = RETORT_TRY(json_uint(object, "pass", where, identity_.passes));
  state.step = RETORT_TRY(json_uint(object, "step", where));
  state.steps = RETORT_TRY(json_uint(object, "steps", where));
  state.checkpoint = RETORT_TRY(json_string(object, "checkpoint", where));
  state.checkpoint_sha256 = RETORT_TRY(json_string(object, "checkpoint_sha256", where));
  state.data_sha256 = RETORT_TRY(json_string(object, "data_sha256", where));
  state.held_out_sha256 = RETORT_TRY(json_string(object, "held_out_sha256", where));
  state.artifacts = *RETORT_TRY(json_array(object, "artifacts", where));
  state.best = RETORT_TRY(json_string(object, "best", where));
  state.best_sha256 = RETORT_TRY(json_string(object, "best_sha256", where));
  state.best_loss = RETORT_TRY(json_number(object, "best_loss", where));
  state.best_risen = RETORT_TRY(json_number(object, "best_risen", where));
  state.best_step = RETORT_TRY(json_uint(object, "best_step", where));
  state.looked = RETORT_TRY(json_uint(object, "looked", where));
  state.waited = RETORT_TRY(json_uint(object, "waited", where));
  const json::object& loss = *RETORT_TRY(json_object(object, "least", where));
  state.loss.next = RETORT_TRY(json_uint(loss, "asked_next", where));
  state.loss.least.loss = RETORT_TRY(json_number(loss, "loss", where));
  state.loss.least.nll = RETORT_TRY(json_number(loss, "nll", where));
  state.loss.lowest_nll = RETORT_TRY(json_number(loss, "lowest_nll", where));
  state.seconds = RETORT_TRY(json_number(object, "seconds", where));
  const std::uint64_t threads = RETORT_TRY(json_uint(object, "threads", where));
  for (const std::string& name : {state.checkpoint, state.best})
    if (fs::path(name).filename() != name)
      return fail(ErrorCode::kCorrupt, where, "'{}' is no file of this folder", name);
  if (state.pass < identity_.passes && threads != static_cast<std::uint64_t>(identity_.threads))
    progress_.warning(
        fmt::format("this run began with {} threads and goes on with {}: sums are added in another "
                    "order, so the result is not bit for bit that of an unbroken run",
                    threads, identity_.threads));
  return {};
}

Result<void> RunFolder::learn_from(const std::string& data_sha256, const std::string& held_out_sha256) {
  for (const auto& [name, was, is] : {std::tuple{"training", &state.data_sha256, &data_sha256},
                                      {"held-out", &state.held_out_sha256, &held_out_sha256}}) {
    if (!was->empty() && *was != *is)
      return fail(ErrorCode::kConflict, folder_.string(),
                  "the {} data has changed since this run began; start anew in another folder", name);
    *was = *is;
  }
  return {};
}

Result<void> RunFolder::save_state() {
  json::object object{{"recipe_sha256", identity_.recipe_sha256},
                      {"teacher_sha256", identity_.teacher_sha256},
                      {"data_sha256", state.data_sha256},
                      {"held_out_sha256", state.held_out_sha256},
                      {"threads", identity_.threads},
                      {"seconds", seconds()},
                      {"pass", state.pass},
                      {"step", state.step},
                      {"steps", state.steps},
                      {"checkpoint", state.checkpoint},
                      {"checkpoint_sha256", state.checkpoint_sha256},
                      {"best", state.best},
                      {"best_sha256", state.best_sha256},
                      {"best_loss", state.best_loss},
                      {"best_risen", state.best_risen},
                      {"best_step", state.best_step},
                      {"looked", state.looked},
                      {"waited", state.waited},
                      {"least", json::object{{"asked_next", state.loss.next},
                                             {"loss", state.loss.least.loss},
                                             {"nll", state.loss.least.nll},
                                             {"lowest_nll", state.loss.lowest_nll}}},
                      {"artifacts", state.artifacts}};
  object["check"] = check_of(object);
  RETORT_TRY(on_disk(write_file_atomic(folder_ / "state.json", pretty_json(object))));
  saved_best_ = state.best;
  sweep();
  return {};
}

Result<void> RunFolder::finish() {
  state.checkpoint.clear(), state.checkpoint_sha256.clear();
  return save_state();
}

double RunFolder::seconds() const {
  return state.seconds + std::chrono::duration<double>(std::chrono::steady_clock::now() - opened_).count();
}

fs::path RunFolder::encoded_file(const std::string& checkpoint) const {
  return folder_ / (checkpoint + ".gguf");
}

Result<void> RunFolder::save(const Network& network, const Moments& moments) {
  const std::string name = fmt::format("checkpoint-{}-{}.safetensors", state.pass, state.step);
  std::vector<TensorSource> all = sources_of(network.weights, "w.");
  const auto facts = other_facts(network);
  for (const auto& [prefix, some] :
       {std::pair{"m.", &moments.first}, std::pair{"v.", &moments.second}, std::pair{"", &facts}}) {
    std::vector<TensorSource> more = sources_of(*some, prefix);
    std::move(more.begin(), more.end(), std::back_inserter(all));
  }
  if (!network.encoded.empty()) {  // a GGUF with Hugging Face's names, beside it
    GgufWriter writer;
    for (const auto& [tensor, matrix] : network.encoded)
      writer.add_matrix(tensor, matrix.columns, matrix.rows, matrix.type,
                        [&matrix = matrix]() -> Result<std::vector<std::byte>> { return matrix.bytes; });
    RETORT_TRY(on_disk(writer.write(encoded_file(name))));
  }
  RETORT_TRY(on_disk(write_safetensors(folder_ / name, all, SafeTensor::DType::kF32)));
  std::string sum = RETORT_TRY(checksum(name));
  const std::string old = std::exchange(state.checkpoint, name);
  std::swap(state.checkpoint_sha256, sum);
  if (auto saved = save_state(); !saved) {
    state.checkpoint = old, state.checkpoint_sha256 = sum;
    return saved;
  }
  return {};
}

Result<std::string> RunFolder::checksum(const std::string& checkpoint) const {
  std::string all = RETORT_TRY(sha256_file_hex(folder_ / checkpoint));
  std::error_code ignored;
  if (fs::exists(encoded_file(checkpoint), ignored))
    all = sha256_hex(all + RETORT_TRY(sha256_file_hex(encoded_file(checkpoint))));
  return all;
}

Result<Safetensors> RunFolder::open_whole(const std::string& name, const std::string& sha256) const {
  if (RETORT_TRY(checksum(name)) != sha256)
    return fail(ErrorCode::kCorrupt, (folder_ / name).string(),
                "this file is not what was written: its hash is another; empty the folder and begin anew");
  return Safetensors::open(folder_ / name);
}

Result<void> RunFolder::restore(Network& network, Moments& moments) const {
  const Safetensors file = RETORT_TRY(open_whole(state.checkpoint, state.checkpoint_sha256));
  RETORT_TRY(load_weights(network, file, "w."));
  moments = {};
  for (std::size_t i = 0; i < network.config.layers.size(); ++i) {
    const SafeTensor* origin = file.find("o." + std::to_string(i));
    if (origin == nullptr) break;
    const at::Tensor values = values_of(*origin).to(at::kLong);
    network.origins.push_back(
        {values[0].item<std::int64_t>(),
         {values.data_ptr<std::int64_t>() + 1, values.data_ptr<std::int64_t>() + values.numel()}});
  }
  for (const auto& [name, tensor] : file.tensors()) {
    if (name.starts_with("w.distil."))  // a hidden-state loss's projections
      network.weights.emplace(name.substr(2), values_of(tensor));
    else if (name.starts_with("m."))
      moments.first.emplace(name.substr(2), values_of(tensor));
    else if (name.starts_with("v."))
      moments.second.emplace(name.substr(2), values_of(tensor));
    else if (name.starts_with("s."))
      network.input_scales.emplace(name.substr(2), values_of(tensor).item<float>());
    else if (name == "b.input" || name == "b.output") {
      const at::Tensor values = values_of(tensor);
      (name == "b.input" ? network.classifier->input_bytes : network.classifier->output_bytes) =
          ByteTensor{true, values[0].item<float>(), values[1].item<std::int32_t>()};
    }
  }
  std::error_code ignored;
  if (!fs::exists(encoded_file(state.checkpoint), ignored)) return {};
  const GgufFile encoded = RETORT_TRY(GgufFile::open(encoded_file(state.checkpoint)));
  for (const GgufTensor& tensor : encoded.tensors())
    network.encoded.emplace(
        tensor.name,
        EncodedMatrix{
            tensor.type, tensor.rows(), tensor.columns(), {tensor.data.begin(), tensor.data.end()}});
  return {};
}

void RunFolder::next_pass() {
  ++state.pass;
  state.step = state.steps = state.best_step = state.looked = state.waited = 0;
  state.best.clear(), state.best_sha256.clear();
  state.best_loss = state.best_risen = 0, state.loss = {};
}

Result<void> RunFolder::save_best(const Network& network, double loss, double risen) {
  const std::string name = fmt::format("checkpoint-{}-{}-best.safetensors", state.pass, state.step);
  RETORT_TRY(
      on_disk(write_safetensors(folder_ / name, sources_of(network.weights, "w."), SafeTensor::DType::kF32)));
  state.best_sha256 = RETORT_TRY(checksum(name));
  state.best = name, state.best_step = state.step, state.best_loss = loss, state.best_risen = risen;
  state.waited = 0;
  sweep();
  return {};
}

Result<void> RunFolder::restore_best(Network& network) const {
  return load_weights(network, RETORT_TRY(open_whole(state.best, state.best_sha256)), "w.");
}

}  // namespace retort
