#include "agent/serve/http/classify.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>

#include "agent/serve/http/engine.h"
#include "agent/serve/kernels/kernels.h"
#include "agent/serve/runtime/evaluate_classifier.h"
#include "common/core/base64.h"
#include "common/core/utf8.h"

namespace retort {
namespace {

/// Whether `value` is a list of inputs rather than one.
bool is_list_of_inputs(const json::value& value, const TensorShape& shape) {
  if (!value.is_array() || value.get_array().empty()) return false;
  const json::array& outer = value.get_array();
  if (outer.front().is_object()) return true;
  std::size_t depth = 0;
  for (const json::value* v = &value; v->is_array(); v = &v->get_array().front()) {
    ++depth;
    if (v->get_array().empty()) break;
  }
  const std::vector<std::size_t>& d = shape.dimensions;
  if (depth <= 1) return false;
  if (depth == d.size()) return false;
  // An image of one channel may come without it.
  if (depth + 1 == d.size() && d.front() == 1 && outer.size() == d[1] &&
      outer.front().get_array().size() == d[2])
    return false;
  return true;
}

Result<void> read_base64(std::string_view text, std::string_view dtype, const std::optional<ByteTensor>& own,
                         ClassifyCall& call) {
  const auto bytes = decode_base64(text);
  if (!bytes) return fail(ErrorCode::kInvalid, "request", "'input' is a text, but no base64");
  if (bytes->empty()) return fail(ErrorCode::kInvalid, "request", "'input' is an empty text");
  if (dtype == "uint8" || dtype == "int8") {
    if (own && own->type() != dtype)
      return fail(ErrorCode::kInvalid, "request", "'dtype' is '{}'; this model's inputs are {}", dtype,
                  own->type());
    const ByteTensor meaning = own.value_or(ByteTensor{.is_signed = dtype == "int8"});
    for (const std::byte b : *bytes) call.inputs.push_back(meaning.value(std::to_integer<std::uint8_t>(b)));
    return {};
  }
  if (dtype != "float32")
    return fail(ErrorCode::kUnsupported, "request", "'dtype' is '{}'; float32, uint8 and int8 are supported",
                dtype);
  if (bytes->size() % 4 != 0)
    return fail(ErrorCode::kInvalid, "request", "'input' holds {} bytes, no whole number of float32 values",
                bytes->size());
  call.inputs.resize(bytes->size() / 4);
  std::memcpy(call.inputs.data(), bytes->data(), bytes->size());
  if (!kernels::all_finite(call.inputs.data(), call.inputs.size()))
    return fail(ErrorCode::kInvalid, "request", "'input' holds a value that is not finite");
  return {};
}

}  // namespace

Result<ClassifyCall> parse_classify(std::string_view text, const ClassifierConfig& config, std::size_t most) {
  const std::string where = "request";
  const json::value document = RETORT_TRY(parse_json(text, where));
  const json::object& body = *RETORT_TRY(as_object(document, where));
  ClassifyCall call;
  if (json_has(body, "top_k")) {
    call.top_k = RETORT_TRY(json_uint(body, "top_k", where, 1u << 30));
    if (call.top_k == 0) return fail(ErrorCode::kInvalid, where, "'top_k' must be at least 1");
  }
  if (json_has(body, "output")) {
    const std::string output = RETORT_TRY(json_string(body, "output", where));
    if (output != "labels" && output != "bytes")
      return fail(ErrorCode::kInvalid, where, "'output' is '{}'; labels and bytes are supported", output);
    call.bytes = output == "bytes";
    if (call.bytes && !config.output_bytes)
      return fail(ErrorCode::kUnsupported, where, "'output': this model's outputs have no form in bytes");
  }
  const json::value* input = body.if_contains("input");
  if (input == nullptr) return fail(ErrorCode::kInvalid, where, "'input' is missing");
  const TensorShape shape = input_shape(config);
  const std::size_t values = shape.values();
  if (input->is_string()) {
    const std::string dtype =
        json_has(body, "dtype") ? RETORT_TRY(json_string(body, "dtype", where)) : std::string("float32");
    RETORT_TRY(read_base64(std::string_view(input->get_string()), dtype, config.input_bytes, call));
    if (call.inputs.empty() || call.inputs.size() % values != 0)
      return fail(ErrorCode::kInvalid, where, "'input' holds {} values; an input has {}", call.inputs.size(),
                  values);
  } else if (is_list_of_inputs(*input, shape)) {
    const json::array& list = input->get_array();
    if (list.size() > most)
      return fail(ErrorCode::kInvalid, where, "{} inputs; a request may have {}", list.size(), most);
    call.inputs.reserve(list.size() * values);
    for (std::size_t i = 0; i < list.size(); ++i)
      RETORT_TRY(read_tensor(list[i], shape, fmt::format("input {}", i), call.inputs));
  } else {
    RETORT_TRY(read_tensor(*input, shape, where, call.inputs));
  }
  call.count = call.inputs.size() / values;
  if (call.count > most)
    return fail(ErrorCode::kInvalid, where, "{} inputs; a request may have {}", call.count, most);
  return call;
}

json::object classification(std::size_t index, std::span<const std::string> labels,
                            std::span<const float> shares, std::size_t top_k) {
  const std::size_t told = top_k == 0 ? labels.size() : std::min(top_k, labels.size());
  std::vector<std::size_t> order(labels.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::partial_sort(
      order.begin(), order.begin() + static_cast<std::ptrdiff_t>(told), order.end(),
      [&](std::size_t a, std::size_t b) { return shares[a] != shares[b] ? shares[a] > shares[b] : a < b; });
  json::array list;
  for (std::size_t k = 0; k < told; ++k)
    list.push_back(json::object{{"label", valid_utf8(labels[order[k]])}, {"probability", shares[order[k]]}});
  return {{"object", "classification"},
          {"index", index},
          {"label", valid_utf8(labels[order[0]])},
          {"probability", shares[order[0]]},
          {"labels", std::move(list)}};
}

ClassifyEngine::ClassifyEngine(std::unique_ptr<ClassifierSession> session, std::size_t queue_limit,
                               ServeMetrics& metrics)
    : session_(std::move(session)), metrics_(metrics), queue_limit_(queue_limit) {
  thread_ = std::thread([this] { serve(); });
}

ClassifyEngine::~ClassifyEngine() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

bool ClassifyEngine::submit(std::shared_ptr<Job> job) {
  const std::lock_guard lock(mutex_);
  if (stopping_ || queue_.size() >= queue_limit_) return false;
  queue_.push_back(std::move(job));
  changed_.notify_one();
  return true;
}

std::size_t ClassifyEngine::waiting() const {
  const std::lock_guard lock(mutex_);
  return queue_.size();
}

bool ClassifyEngine::idle() const {
  const std::lock_guard lock(mutex_);
  return queue_.empty() && running_ == 0;
}

/// Finishes what is queued before it ends.
void ClassifyEngine::serve() {
  const std::size_t values = session_->model().config().input.values(),
                    labels = session_->model().config().labels.size();
  std::vector<std::shared_ptr<Job>> jobs;
  std::vector<float> inputs, logits;
  for (;;) {
    jobs.clear();
    {
      std::unique_lock lock(mutex_);
      running_ = 0;
      changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      // As many requests as fit a batch; one that is larger goes alone, batch by batch.
      std::size_t count = 0;
      while (!queue_.empty() && (jobs.empty() || count + queue_.front()->call.count <= session_->batch())) {
        count += queue_.front()->call.count;
        jobs.push_back(std::move(queue_.front()));
        queue_.pop_front();
      }
      running_ = jobs.size();
    }
    inputs.clear();
    for (const auto& job : jobs)
      if (!job->cancelled) inputs.insert(inputs.end(), job->call.inputs.begin(), job->call.inputs.end());
    const auto begin = std::chrono::steady_clock::now();
    logits.clear();
    for (std::size_t at = 0; at < inputs.size();) {
      const std::size_t n = std::min(inputs.size() - at, session_->batch() * values);
      const auto some = session_->run(std::span(inputs).subspan(at, n));
      // run() refuses a wrong number of values alone, which parse_classify has seen to.
      logits.insert(logits.end(), some->begin(), some->end());
      at += n;
    }
    metrics_.observe_classification(
        inputs.size() / values,
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    std::size_t row = 0;
    for (const auto& job : jobs) {
      if (job->cancelled) {
        metrics_.count_request(499);
        continue;
      }
      const auto mine = std::span<const float>(logits).subspan(row * labels, job->call.count * labels);
      row += job->call.count;
      if (kernels::all_finite(mine.data(), mine.size())) {
        job->on_end(mine, nullptr);
      } else {
        const Error error{ErrorCode::kInvalid,
                          "the outputs are not finite: the input is beyond what the model can take",
                          "request"};
        job->on_end({}, &error);
      }
    }
  }
}

ClassifyApi::ClassifyApi(ServeFront& front, std::shared_ptr<const Classifier> model, ClassifyEngine& engine,
                         std::size_t most)
    : front_(front), model_(std::move(model)), engine_(engine), most_(most) {
  front_.add("POST", "/v1/classify", [this](HttpRequest request, auto responder) {
    classify(std::move(request), std::move(responder));
  });
}

void ClassifyApi::classify(HttpRequest request, std::shared_ptr<HttpResponder> responder) {
  Result<ClassifyCall> call = parse_classify(request.body, model_->config(), most_);
  if (!call) return front_.refuse(*responder, call.error());
  const auto job = std::make_shared<ClassifyEngine::Job>();
  job->call = std::move(*call);
  job->on_end = [this, responder, top_k = job->call.top_k, bytes = job->call.bytes](
                    std::span<const float> logits, const Error* error) {
    if (error != nullptr) return front_.refuse(*responder, *error);
    const std::vector<std::string>& labels = model_->config().labels;
    std::vector<float> shares(labels.size());
    json::array data;
    for (std::size_t i = 0; i < logits.size() / labels.size(); ++i) {
      probabilities(logits.subspan(i * labels.size(), labels.size()), shares);
      json::object one = classification(i, labels, shares, top_k);
      if (bytes) {
        const ByteTensor& form = *model_->config().output_bytes;
        std::vector<std::byte> narrow;
        for (const float x : logits.subspan(i * labels.size(), labels.size()))
          narrow.push_back(std::byte{form.byte(x)});
        one["output"] = json::object{{"base64", encode_base64(narrow)},
                                     {"dtype", form.type()},
                                     {"scale", form.scale},
                                     {"zero_point", form.zero_point}};
      }
      data.push_back(std::move(one));
    }
    front_.answer(*responder,
                  json::object{{"object", "list"}, {"model", front_.name()}, {"data", std::move(data)}});
  };
  responder->on_closed([job] { job->cancelled = true; });
  if (!engine_.submit(job)) front_.refuse_full(*responder);
}

}  // namespace retort
