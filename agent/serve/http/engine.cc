#include "agent/serve/http/engine.h"

#include <algorithm>
#include <chrono>

namespace retort {
namespace {

/// Bytes at the end of `text` that begin a UTF-8 character without ending it.
std::size_t unfinished_bytes(std::string_view text) {
  for (std::size_t back = 1; back <= std::min<std::size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xc0) == 0x80) continue;
    const std::size_t length = byte >= 0xf0 && byte < 0xf8 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc2 ? 2 : 1;
    return byte < 0xf8 && length > back ? back : 0;
  }
  return 0;
}

/// Replaces what is not UTF-8, so that an answer is always valid JSON text.
std::string valid_utf8(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    std::size_t length = byte < 0x80                   ? 1
                         : byte >= 0xc2 && byte < 0xe0 ? 2
                         : byte >= 0xe0 && byte < 0xf0 ? 3
                         : byte >= 0xf0 && byte < 0xf5 ? 4
                                                       : 0;
    bool good = length != 0 && i + length <= text.size();
    for (std::size_t j = 1; good && j < length; ++j)
      good = (static_cast<unsigned char>(text[i + j]) & 0xc0) == 0x80;
    if (good && length >= 3) {
      const auto second = static_cast<unsigned char>(text[i + 1]);
      if ((byte == 0xe0 && second < 0xa0) || (byte == 0xed && second >= 0xa0) ||
          (byte == 0xf0 && second < 0x90) || (byte == 0xf4 && second >= 0x90))
        good = false;
    }
    if (good)
      out.append(text.substr(i, length));
    else
      out += "\xef\xbf\xbd", length = 1;
    i += length;
  }
  return out;
}

}  // namespace

std::string TextGate::push(std::string_view bytes) {
  if (stopped_) return {};
  held_ += bytes;
  std::size_t cut = std::string::npos;
  for (const std::string& word : stop_) cut = std::min(cut, held_.find(word));
  if (cut != std::string::npos) {
    stopped_ = true;
    const std::string out = valid_utf8(std::string_view(held_).substr(0, cut));
    held_.clear();
    return out;
  }
  std::size_t hold = unfinished_bytes(held_);
  for (const std::string& word : stop_)  // the longest end of the text that begins a stop string
    for (std::size_t n = std::min(word.size() - 1, held_.size()); n > hold; --n)
      if (std::string_view(held_).substr(held_.size() - n) == std::string_view(word).substr(0, n)) hold = n;
  const std::string out = valid_utf8(std::string_view(held_).substr(0, held_.size() - hold));
  held_.erase(0, held_.size() - hold);
  return out;
}

std::string TextGate::finish() {
  if (stopped_) return {};
  stopped_ = true;
  return valid_utf8(std::exchange(held_, {}));
}

Engine::Engine(std::unique_ptr<Session> session, std::size_t queue_limit, ServeMetrics& metrics)
    : session_(std::move(session)),
      metrics_(metrics),
      queue_limit_(queue_limit),
      thread_([this] { serve(); }) {
  cached_.reserve(session_->n_ctx());
}

Engine::~Engine() { stop(); }

bool Engine::submit(std::shared_ptr<Generation> generation) {
  const std::lock_guard lock(mutex_);
  if (stopping_ || queue_.size() >= queue_limit_) return false;
  queue_.push_back(std::move(generation));
  changed_.notify_one();
  return true;
}

void Engine::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

std::size_t Engine::waiting() const {
  const std::lock_guard lock(mutex_);
  return queue_.size();
}

bool Engine::idle() const {
  const std::lock_guard lock(mutex_);
  return queue_.empty() && !busy_;
}

void Engine::serve() {
  for (;;) {
    std::shared_ptr<Generation> next;
    {
      std::unique_lock lock(mutex_);
      busy_ = false;
      changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      next = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
    }
    generate(*next);
  }
}

void Engine::generate(Generation& generation) {
  const GenerationRequest& request = generation.request;
  GenerationEnd end;
  end.prompt_tokens = static_cast<std::uint32_t>(request.prompt.size());
  const auto start = std::chrono::steady_clock::now();
  auto last = start;
  const auto lap = [&] {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last).count();
    last = now;
    return seconds;
  };
  const Tokenizer& tokenizer = session_->model().tokenizer();
  TextGate gate(request.stop);
  Sampler sampler(request.sampling, session_->model().config().n_vocab);

  // Keep the part of the cache that this prompt shares; its last token is computed anyway, for its logits.
  std::size_t shared = 0;
  while (shared + 1 < request.prompt.size() && shared < cached_.size() &&
         cached_[shared] == request.prompt[shared])
    ++shared;
  session_->rewind(static_cast<std::uint32_t>(shared));
  cached_.resize(shared);
  std::span<const TokenId> rest = std::span(request.prompt).subspan(shared);
  std::span<const float> logits;
  const auto compute = [&](std::span<const TokenId> tokens) {
    Result<std::span<const float>> done = session_->evaluate(tokens);
    if (!done) {
      end.reason = "error";
      end.error = done.error().message;
      return false;
    }
    logits = *done;
    cached_.insert(cached_.end(), tokens.begin(), tokens.end());
    return true;
  };
  while (!rest.empty() && end.reason.empty()) {  // piece by piece, so that a client that leaves is noticed
    if (generation.cancelled)
      end.reason = "cancelled";
    else if (compute(rest.first(std::min<std::size_t>(rest.size(), session_->batch()))))
      rest = rest.subspan(std::min<std::size_t>(rest.size(), session_->batch()));
  }
  while (end.reason.empty()) {
    if (generation.cancelled) {
      end.reason = "cancelled";
      break;
    }
    if (end.completion_tokens == request.max_tokens || session_->position() == session_->n_ctx()) {
      end.reason = "length";
      break;
    }
    const std::size_t window = std::min<std::size_t>(cached_.size(), 64);
    const TokenId next = sampler.sample(logits, std::span(cached_).last(window));
    if (next == tokenizer.eos()) {
      end.reason = "stop";
      break;
    }
    ++end.completion_tokens;
    if (end.completion_tokens == 1)
      metrics_.observe_first_token(lap());
    else
      metrics_.observe_token(lap());
    const std::string text = gate.push(tokenizer.piece(next));
    if (!text.empty()) generation.on_text(text);
    if (gate.stopped())
      end.reason = "stop";
    else if (end.completion_tokens == request.max_tokens)
      end.reason = "length";
    else
      compute(std::span(&next, 1));
  }
  if (const std::string text = gate.finish(); !text.empty()) generation.on_text(text);
  metrics_.count_tokens(end.prompt_tokens, end.completion_tokens);
  generation.on_end(end);
}

}  // namespace retort
