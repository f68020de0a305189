#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "common/core/json.h"
#include "common/core/random.h"
#include "common/http/http.h"

namespace retort {

/// What changed, for those who watch: server-sent events with ids, so that a watcher that comes back with
/// Last-Event-ID misses nothing that is still kept. An event says which thing changed and what it is now in
/// short; its whole is a GET away. Kept in memory: after a restart, or beyond what is kept, a watcher is told
/// "reset" and lists again. Thread: reactor.
class Events {
 public:
  Events(boost::asio::io_context& reactor, RandomSource& random, std::size_t keep = 10000);
  /// Publishes unless the thing's last event said just the same. kind: "device", "job", "rollout", ….
  void publish(const std::string& kind, const std::string& id, const json::object& now);
  /// True where no more watchers are taken.
  bool full() const;
  /// Answers with a stream of the kinds wanted (none: all).
  void watch(std::shared_ptr<HttpResponder> responder, std::set<std::string> kinds,
             const std::string& last_event_id);
  /// Ends all streams.
  void stop();
  std::size_t watchers() const { return watchers_.size(); }

 private:
  struct Event {
    std::uint64_t number = 0;
    std::string kind, text;
  };
  struct Watcher {
    std::shared_ptr<HttpResponder> responder;
    std::set<std::string> kinds;
  };
  /// To all who want the kind ("": to all).
  void write(const std::string& text, const std::string& kind);
  void keep_alive();

  const std::string epoch_;  ///< of this process: numbers start anew with it
  const std::size_t keep_;
  std::uint64_t number_ = 0;
  std::deque<Event> events_;
  std::map<std::string, std::size_t> last_;  ///< hash of the last data, by kind and id
  std::list<Watcher> watchers_;
  boost::asio::steady_timer timer_;
};

}  // namespace retort
