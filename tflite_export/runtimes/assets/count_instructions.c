/*
 * A TCG plugin of qemu-user: guest instructions between two marks.
 *
 * The guest marks by closing a file descriptor that it never opened, MARK; at each mark the count since the start is
 * written as a line to the file that the argument out= names. One guest thread is meant; the count of several would not
 * be exact.
 *
 *     cc -shared -fPIC -O2 -DAPI=1 -o count_instructions.so count_instructions.c
 *
 * The declarations are the ones of qemu's plugin API (docs/devel/tcg-plugins.rst) that are used here, since Debian ships
 * the API without its header. API is the version that the installed qemu accepts.
 */

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define MARK 1000003

struct qemu_plugin_tb;
typedef uint64_t qemu_plugin_id_t;
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*cb)(unsigned int, void *), int flags,
                                          void *data);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id,
                                          void (*cb)(qemu_plugin_id_t, unsigned int, int64_t, uint64_t, uint64_t,
                                                     uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

__attribute__((visibility("default"))) int qemu_plugin_version = API;

static uint64_t executed;
static FILE *out;

static void on_block(unsigned int cpu, void *instructions)
{
    (void)cpu;
    executed += (uintptr_t)instructions;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_block, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void on_call(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                    uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == 57 /* close, on aarch64 */ && a1 == MARK) {
        fprintf(out, "%" PRIu64 "\n", executed);
        fflush(out);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int count,
                                                               char **arguments)
{
    (void)info;
    if (count != 1 || strncmp(arguments[0], "out=", 4) != 0 || (out = fopen(arguments[0] + 4, "w")) == NULL) {
        fprintf(stderr, "count_instructions: one argument is needed, out=FILE, a file that can be written\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_call);
    return 0;
}
