#include "agent/serve/http/encoder_engine.h"

#include <algorithm>
#include <chrono>

#include "agent/serve/kernels/kernels.h"
#include "agent/serve/runtime/classifier.h"

namespace retort {

EncoderEngine::EncoderEngine(std::unique_ptr<EncoderSession> session, std::size_t queue_limit,
                             ServeMetrics& metrics)
    : session_(std::move(session)), metrics_(metrics), queue_limit_(queue_limit) {
  thread_ = std::thread([this] { serve(); });
}

/// Finishes what is queued, then ends the thread.
EncoderEngine::~EncoderEngine() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_one();
  }
  thread_.join();
}

bool EncoderEngine::submit(std::shared_ptr<Encoding> encoding) {
  const auto pending = std::make_shared<Pending>();
  pending->encoding = std::move(encoding);
  const std::lock_guard lock(mutex_);
  if (stopping_ || queue_.size() >= queue_limit_) return false;
  queue_.push_back(pending);
  changed_.notify_one();
  return true;
}

std::size_t EncoderEngine::waiting() const {
  const std::lock_guard lock(mutex_);
  return queue_.size();
}

bool EncoderEngine::idle() const {
  const std::lock_guard lock(mutex_);
  return queue_.empty() && !running_;
}

void EncoderEngine::serve() {
  std::vector<std::shared_ptr<Pending>> batch;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      running_ = false;
      changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      running_ = true;
    }
    step(batch);
  }
}

/// Computes one batch: texts of the requests in the queue that want the same kind of thing as its head, each
/// in its turn, so that a long one does not keep short ones waiting.
void EncoderEngine::step(std::vector<std::shared_ptr<Pending>>& batch) {
  std::vector<EncoderSession::Text> texts;
  batch.clear();  // one entry a text, those of a request side by side
  std::vector<std::shared_ptr<Pending>> left, late;
  {
    const std::lock_guard lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    std::erase_if(queue_, [&](const std::shared_ptr<Pending>& pending) {
      const bool gone = pending->encoding->cancelled;
      if (gone) left.push_back(pending);
      if (!gone && now >= pending->encoding->deadline) late.push_back(pending);
      return gone || now >= pending->encoding->deadline;
    });
    std::size_t tokens = 0, count = 0;
    std::vector<std::size_t> shares(queue_.size());
    for (bool more = true; more;) {
      more = false;
      for (std::size_t i = 0; i < queue_.size() && count < session_->texts(); ++i) {
        const EncodeCall& call = queue_[i]->encoding->call;
        const std::size_t next = queue_[i]->next + shares[i];
        if (call.kind != queue_.front()->encoding->call.kind || next == call.texts.size()) continue;
        if (tokens + call.texts[next].size() > session_->batch()) continue;
        tokens += call.texts[next].size();
        ++shares[i], ++count;
        more = true;
      }
    }
    std::deque<std::shared_ptr<Pending>> waiting, begun;
    for (std::size_t i = 0; i < queue_.size(); ++i) {
      const std::shared_ptr<Pending>& pending = queue_[i];
      if (shares[i] > 0 && pending->next == 0) pending->begun = now;
      for (std::size_t k = 0; k < shares[i]; ++k) {
        texts.emplace_back(pending->encoding->call.texts[pending->next++]);
        batch.push_back(pending);
      }
      if (pending->next < pending->encoding->call.texts.size())
        (shares[i] > 0 ? begun : waiting).push_back(pending);
    }
    waiting.insert(waiting.end(), begun.begin(), begun.end());
    queue_ = std::move(waiting);
  }
  for (const auto& pending : late)
    pending->encoding->on_end(
        pending->encoding->call,
        fail(ErrorCode::kUnavailable, "", "the request took longer than this server allows"));
  for (const auto& pending : left) pending->encoding->on_cancelled();
  if (batch.empty()) return;
  const bool classify = batch.front()->encoding->call.kind == EncodeKind::kClassify;
  const Result<std::span<const float>> rows = classify ? session_->classify(texts) : session_->embed(texts);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    Pending& pending = *batch[i];
    if (rows) {
      const std::size_t width = rows->size() / texts.size();
      std::vector<float> row(rows->begin() + static_cast<std::ptrdiff_t>(i * width),
                             rows->begin() + static_cast<std::ptrdiff_t>((i + 1) * width));
      pending.finite &= kernels::all_finite(row.data(), row.size());
      if (classify) probabilities(std::vector<float>(row), row);
      pending.rows.push_back(std::move(row));
    }
    // A failure is told once, by the request's last text here; what is left of it in the queue goes.
    const bool last = i + 1 == batch.size() || batch[i + 1] != batch[i];
    if (!last || (rows && pending.rows.size() < pending.encoding->call.texts.size())) continue;
    if (!rows) {
      const std::lock_guard lock(mutex_);
      std::erase(queue_, batch[i]);
    }
    if (pending.encoding->cancelled) {
      pending.encoding->on_cancelled();
      continue;
    }
    std::uint64_t tokens = 0;
    for (const auto& text : pending.encoding->call.texts) tokens += text.size();
    metrics_.count_tokens(tokens, 0);
    metrics_.observe_first_token(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - pending.begun).count());
    const EncodeCall& call = pending.encoding->call;
    if (!rows)
      pending.encoding->on_end(call, tl::unexpected(rows.error()));
    else if (!pending.finite)
      pending.encoding->on_end(call, fail(ErrorCode::kInvalid, session_->model().file().where(),
                                          "the model's outputs for this request are not finite"));
    else
      pending.encoding->on_end(call, std::move(pending.rows));
  }
}

}  // namespace retort
