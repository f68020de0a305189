#include "agent/serve/http/engine.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <optional>
#include <utility>

#include "common/core/utf8.h"

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

TokenLogprob logprob_of(TokenId chosen, std::span<const float> logits, std::uint32_t top,
                        const Tokenizer& tokenizer) {
  const double normalizer = kernels::log_sum_exp(logits.data(), logits.size());
  const auto logprob = [&](TokenId id) {
    return static_cast<double>(logits[static_cast<std::size_t>(id)]) - normalizer;
  };
  TokenLogprob out{tokenizer.piece(chosen), logprob(chosen), {}};
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const std::size_t count = std::min<std::size_t>(top, ids.size());
  std::partial_sort(
      ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count), ids.end(), [&](TokenId a, TokenId b) {
        const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
        return x != y ? x > y : a < b;
      });
  for (std::size_t i = 0; i < count; ++i) out.top.emplace_back(tokenizer.piece(ids[i]), logprob(ids[i]));
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

/// A stream of the session and the request that has it, if any.
struct Engine::Stream {
  std::uint32_t number = 0;
  std::vector<TokenId> cached;  ///< what its KV cache holds
  std::uint64_t used = 0;       ///< the turn of its last request
  std::shared_ptr<Generation> generation;
  std::optional<Sampler> sampler;
  std::optional<TextGate> gate;
  std::optional<grammar::Matcher> matcher;
  std::vector<TokenLogprob> tokens;  ///< chosen since text was last given out
  GenerationEnd end;
  TokenId next = -1;  ///< sampled, not yet computed; -1 while the prompt is
  std::chrono::steady_clock::time_point last;
};

Engine::Engine(std::unique_ptr<Session> session, std::size_t queue_limit, ServeMetrics& metrics)
    : session_(std::move(session)),
      metrics_(metrics),
      queue_limit_(queue_limit),
      streams_(session_->streams()) {
  for (std::uint32_t i = 0; i < streams_.size(); ++i) {
    streams_[i].number = i;
    streams_[i].cached.reserve(session_->n_ctx());
  }
  thread_ = std::thread([this] { serve(); });
}

Engine::~Engine() { stop(); }

bool Engine::submit(const std::vector<std::shared_ptr<Generation>>& generations) {
  const std::lock_guard lock(mutex_);
  const std::size_t free_streams = streams_.size() - running_;
  if (stopping_ || queue_.size() + generations.size() > queue_limit_ + free_streams) return false;
  queue_.insert(queue_.end(), generations.begin(), generations.end());
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

std::size_t Engine::most() const { return streams_.size() + queue_limit_; }

std::size_t Engine::waiting() const {
  const std::lock_guard lock(mutex_);
  return queue_.size();
}

std::size_t Engine::running() const {
  const std::lock_guard lock(mutex_);
  return running_;
}

bool Engine::idle() const {
  const std::lock_guard lock(mutex_);
  return queue_.empty() && running_ == 0;
}

void Engine::serve() {
  while (admit()) step();
}

/// Gives free streams to waiting requests; sleeps while there are none. False at the end.
bool Engine::admit() {
  for (;;) {
    std::shared_ptr<Generation> next;
    {
      std::unique_lock lock(mutex_);
      running_ = static_cast<std::size_t>(std::count_if(
          streams_.begin(), streams_.end(), [](const Stream& s) { return s.generation != nullptr; }));
      if (running_ == 0) changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return running_ > 0;
      if (running_ == streams_.size()) return true;
      next = std::move(queue_.front());
      queue_.pop_front();
      ++running_;
    }
    begin(std::move(next));
  }
}

/// Puts a request on the free stream whose cache it shares most of; of equals, on the one unused for longest.
void Engine::begin(std::shared_ptr<Generation> generation) {
  const std::vector<TokenId>& prompt = generation->request.prompt;
  // The prompt's last token is computed anyway, for its logits.
  const auto shared_with = [&](const Stream& stream) {
    const std::size_t limit = std::min(prompt.size() - 1, stream.cached.size());
    return static_cast<std::size_t>(std::mismatch(prompt.begin(),
                                                  prompt.begin() + static_cast<std::ptrdiff_t>(limit),
                                                  stream.cached.begin())
                                        .first -
                                    prompt.begin());
  };
  Stream *chosen = nullptr, *best = nullptr;
  std::size_t chosen_shares = 0, best_shares = 0;
  for (Stream& stream : streams_) {
    const std::size_t shares = shared_with(stream);
    if (best == nullptr || shares > best_shares) best = &stream, best_shares = shares;
    if (stream.generation != nullptr) continue;
    if (chosen == nullptr || shares > chosen_shares ||
        (shares == chosen_shares && stream.used < chosen->used))
      chosen = &stream, chosen_shares = shares;
  }
  if (best_shares > chosen_shares) {  // another stream, at work, has more of it
    session_->copy(best->number, chosen->number, static_cast<std::uint32_t>(best_shares));
    chosen_shares = best_shares;
  } else {
    session_->rewind(static_cast<std::uint32_t>(chosen_shares), chosen->number);
  }
  chosen->cached.assign(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(chosen_shares));
  chosen->used = ++turn_;
  chosen->sampler.emplace(generation->request.sampling, session_->model().config().n_vocab);
  chosen->gate.emplace(generation->request.stop);
  chosen->matcher.reset();
  if (generation->request.grammar) chosen->matcher.emplace(generation->request.grammar);
  chosen->tokens.clear();
  chosen->end = {};
  chosen->end.prompt_tokens = static_cast<std::uint32_t>(prompt.size());
  chosen->next = -1;
  chosen->last = std::chrono::steady_clock::now();
  chosen->generation = std::move(generation);
}

/// One batch: the next token of each stream that generates, and as much of the new prompts as has room, first
/// come first served.
void Engine::step() {
  chunks_.clear();
  in_batch_.clear();
  const auto now = std::chrono::steady_clock::now();
  for (Stream& stream : streams_)
    if (stream.generation != nullptr && stream.generation->cancelled)
      end(stream, "cancelled");
    else if (stream.generation != nullptr && now >= stream.generation->deadline)
      end(stream, "timeout");
  std::size_t room = session_->batch();
  for (Stream& stream : streams_)
    if (stream.generation != nullptr && stream.next >= 0) {
      chunks_.push_back({stream.number, std::span(&stream.next, 1), true});
      in_batch_.push_back(&stream);
      --room;
    }
  for (std::uint64_t after = 0; room > 0;) {
    Stream* first = nullptr;
    for (Stream& stream : streams_)
      if (stream.generation != nullptr && stream.next < 0 && stream.used > after &&
          (first == nullptr || stream.used < first->used))
        first = &stream;
    if (first == nullptr) break;
    after = first->used;
    const std::span<const TokenId> rest =
        std::span<const TokenId>(first->generation->request.prompt).subspan(first->cached.size());
    const std::size_t n = std::min(rest.size(), room);
    chunks_.push_back({first->number, rest.first(n), n == rest.size()});
    in_batch_.push_back(first);
    room -= n;
  }
  if (chunks_.empty()) return;
  const Result<std::span<const float>> logits = session_->step(chunks_);
  if (!logits) {
    for (Stream* stream : in_batch_) {
      stream->end.error = logits.error().message;
      end(*stream, "error");
    }
    return;
  }
  const std::size_t n_vocab = session_->model().config().n_vocab;
  std::size_t row = 0;
  for (std::size_t i = 0; i < chunks_.size(); ++i) {
    const Session::Chunk& chunk = chunks_[i];
    Stream& stream = *in_batch_[i];
    stream.cached.insert(stream.cached.end(), chunk.tokens.begin(), chunk.tokens.end());
    if (chunk.wants_logits) advance(stream, logits->subspan(row++ * n_vocab, n_vocab));
  }
}

/// Chooses a stream's next token.
void Engine::advance(Stream& stream, std::span<const float> logits) {
  const GenerationRequest& request = stream.generation->request;
  if (!kernels::all_finite(logits.data(), logits.size())) {
    stream.end.error = "the model's logits are no numbers: its file is broken";
    return end(stream, "error");
  }
  if (session_->position(stream.number) == session_->n_ctx()) return end(stream, "length");
  const std::size_t window = std::min<std::size_t>(stream.cached.size(), 64);
  std::span<const std::uint64_t> allowed;
  if (stream.matcher) {
    allowed = stream.matcher->allowed();
    if (std::all_of(allowed.begin(), allowed.end(), [](std::uint64_t bits) { return bits == 0; })) {
      stream.end.error = "no token of the vocabulary goes on with the response format";
      return end(stream, "error");
    }
  }
  stream.next = stream.sampler->sample(logits, std::span<const TokenId>(stream.cached).last(window), allowed);
  const Tokenizer& tokenizer = session_->model().tokenizer();
  if (tokenizer.ends_generation(stream.next)) return end(stream, "stop");
  if (stream.matcher) stream.matcher->read(tokenizer.piece(stream.next));
  if (request.logprobs)
    stream.tokens.push_back(logprob_of(stream.next, logits, *request.logprobs, tokenizer));
  const auto now = std::chrono::steady_clock::now();
  const double seconds = std::chrono::duration<double>(now - stream.last).count();
  stream.last = now;
  if (++stream.end.completion_tokens == 1)
    metrics_.observe_first_token(seconds);
  else
    metrics_.observe_token(seconds);
  const std::string text = stream.gate->push(tokenizer.piece(stream.next));
  if (!text.empty()) stream.generation->on_text(text, std::exchange(stream.tokens, {}));
  if (stream.gate->stopped() || (stream.matcher && stream.matcher->complete()))
    end(stream, "stop");
  else if (stream.end.completion_tokens == request.max_tokens)
    end(stream, "length");
}

void Engine::end(Stream& stream, std::string reason) {
  stream.end.reason = std::move(reason);
  const std::string text = stream.gate->finish();
  if (!text.empty() || !stream.tokens.empty())
    stream.generation->on_text(text, std::exchange(stream.tokens, {}));
  metrics_.count_tokens(stream.end.prompt_tokens, stream.end.completion_tokens);
  stream.generation->on_end(stream.end);
  stream.generation = nullptr;
}

}  // namespace retort
