// Lets the operating system refuse one file: LD_PRELOAD it, and call failing_files. Every open of
// the file, or every read, then fails with the errno given, whichever language it comes from.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char chosen[PATH_MAX];
static int number, reads_fail, hits;

void failing_files(const char *path, int error, int reads) {
  snprintf(chosen, sizeof chosen, "%s", path);
  number = error;
  reads_fail = reads;
  hits = 0;
}

int failing_hits(void) { return hits; }

static int refuse(void) {
  hits++;
  errno = number;
  return -1;
}

static int is_chosen(int file) {
  char link[64], path[PATH_MAX];
  if (!chosen[0] || !reads_fail) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return !strcmp(path, chosen);
}

#define OPEN(name)                                                          \
  int name(const char *path, int flags, ...) {                              \
    va_list rest;                                                           \
    va_start(rest, flags);                                                  \
    const mode_t mode = va_arg(rest, mode_t);                               \
    va_end(rest);                                                           \
    if (chosen[0] && !reads_fail && !strcmp(path, chosen)) return refuse(); \
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);          \
    return real(path, flags, mode);                                         \
  }
OPEN(open)
OPEN(open64)

#define READ(name, offset_type)                                                      \
  ssize_t name(int file, void *to, size_t bytes, offset_type offset) {               \
    if (is_chosen(file)) return refuse();                                            \
    ssize_t (*real)(int, void *, size_t, offset_type) = dlsym(RTLD_NEXT, #name);     \
    return real(file, to, bytes, offset);                                            \
  }
READ(pread, off_t)
READ(pread64, off64_t)

ssize_t read(int file, void *to, size_t bytes) {
  if (is_chosen(file)) return refuse();
  ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
  return real(file, to, bytes);
}
