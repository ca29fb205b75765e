/* Preloaded into a server under test: its wall clock, moved by the seconds that TEST_CLOCK_FILE holds (an int64_t, which
 * the test changes while the server runs). Monotonic clocks are left alone, as a machine leaves them. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *seconds;

__attribute__((constructor)) static void open_clock(void) {
    const char *name = getenv("TEST_CLOCK_FILE");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) abort();
    void *page = mmap(NULL, sizeof *seconds, PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) abort();
    seconds = page;
    close(file);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int outcome = (int)syscall(SYS_clock_gettime, id, now);
    if (outcome == 0 && seconds && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += *seconds;
    return outcome;
}
