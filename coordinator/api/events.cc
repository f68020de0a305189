#include "coordinator/api/events.h"

#include <charconv>

namespace retort {
namespace {

constexpr std::size_t kMaxWatchers = 64;
constexpr std::chrono::seconds kQuiet{15};  // after which a comment keeps proxies from closing the stream

}  // namespace

Events::Events(boost::asio::io_context& reactor, RandomSource& random, std::size_t keep)
    : epoch_(random.hex(4)), keep_(keep), timer_(reactor) {}

void Events::publish(const std::string& kind, const std::string& id, const json::object& now) {
  const std::string data = json::serialize(now);
  const std::size_t hash = std::hash<std::string>()(data);
  const auto [last, fresh] = last_.try_emplace(kind + '\0' + id, hash);
  if (!fresh && last->second == hash) return;
  last->second = hash;
  Event event;
  event.number = ++number_;
  event.kind = kind;
  event.text = fmt::format("id: {}-{}\nevent: {}\ndata: {}\n\n", epoch_, event.number, kind, data);
  write(event.text, kind);
  events_.push_back(std::move(event));
  if (events_.size() > keep_) events_.pop_front();
}

void Events::watch(std::shared_ptr<HttpResponder> responder, std::set<std::string> kinds,
                   const std::string& last_event_id) {
  responder->start_stream(200, "text/event-stream", {{"X-Accel-Buffering", "no"}});
  // The first event tells a newcomer where it stands, so that it can come back there.
  const std::size_t dash = last_event_id.find('-');
  std::uint64_t seen = 0;
  bool known = false;
  if (dash != std::string::npos && last_event_id.substr(0, dash) == epoch_) {
    const char *begin = last_event_id.data() + dash + 1, *end = last_event_id.data() + last_event_id.size();
    const auto [stop, error] = std::from_chars(begin, end, seen);
    known = error == std::errc() && stop == end && seen <= number_ &&
            (events_.empty() ? seen == number_ : seen + 1 >= events_.front().number);
  }
  if (known) {
    for (const Event& event : events_)
      if (event.number > seen && (kinds.empty() || kinds.count(event.kind) != 0))
        responder->write(event.text);
  } else {
    responder->write(fmt::format("id: {}-{}\nevent: {}\ndata: {{}}\n\n", epoch_, number_,
                                 last_event_id.empty() ? "hello" : "reset"));
  }
  watchers_.push_back({responder, std::move(kinds)});
  const auto self = std::prev(watchers_.end());
  responder->on_closed([this, self] { watchers_.erase(self); });
  if (watchers_.size() == 1) keep_alive();
}

void Events::write(const std::string& text, const std::string& kind) {
  // A watcher that cannot keep up is cut within write(), and leaves the list.
  for (auto at = watchers_.begin(); at != watchers_.end();) {
    const Watcher& watcher = *at++;
    if (!kind.empty() && !watcher.kinds.empty() && watcher.kinds.count(kind) == 0) continue;
    const std::shared_ptr<HttpResponder> responder = watcher.responder;
    responder->write(text);
  }
}

bool Events::full() const { return watchers_.size() >= kMaxWatchers; }

void Events::keep_alive() {
  timer_.expires_after(kQuiet);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (error || watchers_.empty()) return;
    write(": quiet\n\n", "");
    keep_alive();
  });
}

void Events::stop() {
  timer_.cancel();
  const auto watchers = std::move(watchers_);
  watchers_.clear();
  for (const Watcher& watcher : watchers) {
    watcher.responder->on_closed([] {});
    watcher.responder->finish();
  }
}

}  // namespace retort
