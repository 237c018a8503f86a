// Threads that share the items of a call, phase by phase, and sleep between calls.
//
// A phase is over when its items are done, not when all threads have come: one that another program holds up for a while
// misses what the others did meanwhile. Who waits gives its processor away soon, so that a busy machine loses little.

#pragma once

#include <immintrin.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

// Waits a little longer each time: some 20 microseconds of pauses, then for others to run.
class Patience {
    int64_t waited = 0;

  public:
    void wait() {
        if (waited++ < 400)
            _mm_pause();
        else
            sched_yield();
    }
};

// The items of one phase of a call.
struct alignas(64) Phase {
    std::atomic<int64_t> taken{0}, done{0};

    // Does items that nobody has taken, and returns when all are done. Every thread of the call calls this.
    template <class Work>
    void share(int64_t num, const Work& work) {
        int64_t mine = 0;
        for (int64_t item; (item = taken.fetch_add(1, std::memory_order_relaxed)) < num; mine++) work(item);
        if (mine) done.fetch_add(mine, std::memory_order_acq_rel);
        for (Patience patience; done.load(std::memory_order_acquire) < num;) patience.wait();
    }
};

class Crew {
    std::mutex mutex, in_call;
    std::condition_variable called;
    int64_t size = 0, places = 0;  // threads, and how many may still come to the call
    void (*work)(void*) = nullptr;
    void* with = nullptr;
    std::atomic<int64_t> inside{0};
    const pid_t process = getpid();

    void stay() {
        for (std::unique_lock<std::mutex> held(mutex);;) {
            called.wait(held, [&] { return places > 0; });
            places--;
            inside++;
            const auto now = work;
            void* const argument = with;
            held.unlock();
            now(argument);
            inside--;
            held.lock();
        }
    }

    void grow(int64_t to) {
        try {
            for (; size < to; size++) std::thread([this] { stay(); }).detach();
        } catch (const std::system_error&) {  // the machine gives no more: those that there are do
        }
    }

  public:
    // The threads of this process. They are never joined: the end of the process ends them.
    static Crew& find() {
        static std::mutex making;
        static Crew* crew = nullptr;
        std::lock_guard<std::mutex> held(making);
        if (crew == nullptr || crew->process != getpid()) crew = new Crew;  // a fork has none of its parent's threads
        return *crew;
    }

    // Calls `job()` here and in up to `threads` - 1 others; returns when all have left it.
    template <class Job>
    void call(int64_t threads, Job& job) {
        std::unique_lock<std::mutex> alone(in_call, std::try_to_lock);
        if (threads < 2 || !alone.owns_lock()) return job();  // others work for another caller
        {
            std::lock_guard<std::mutex> held(mutex);
            grow(threads - 1);
            work = [](void* job) { (*(Job*)job)(); };
            with = &job;
            places = std::min(size, threads - 1);
        }
        called.notify_all();
        job();
        {
            std::lock_guard<std::mutex> held(mutex);
            places = 0;
        }
        for (Patience patience; inside.load(std::memory_order_acquire) > 0;) patience.wait();
    }
};
