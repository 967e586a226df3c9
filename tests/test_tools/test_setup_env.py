"""What the set-up decides before it does anything, by the script itself."""
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'tools/setup_env.sh'


@pytest.mark.parametrize('packages, message', [
    (0, 'no Python that runs'),  # an interrupted one, which is made anew
    (1, 'is an environment whose Python or pip does not work'),
    (1500, 'is an environment whose Python or pip does not work'),
])
def test_an_environment_whose_pip_does_not_work_is_the_users(
        packages, message, tmp_path):
    """However much is installed in it: of what ``uv`` made, for instance."""
    env = tmp_path / 'env'
    installed = env / 'lib/python3.11/site-packages'
    for name in ('pip', *(f'a_package_with_a_long_name_{i:04}'
                          for i in range(packages))):
        (installed / f'{name}-1.0.dist-info').mkdir(parents=True)
    (env / 'bin').mkdir()
    (env / 'pyvenv.cfg').touch()
    (env / 'bin/python').symlink_to('/bin/false')
    before = sorted(env.rglob('*'))
    # With a Python that does not run, it ends before it deletes anything.
    done = subprocess.run(
        [SCRIPT, '--env', env, '--python', '/bin/false'],
        capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert sorted(env.rglob('*')) == before


def test_a_folder_that_is_no_environment_is_not_taken_for_one(tmp_path):
    for i in range(1500):
        (tmp_path / f'a_file_with_a_long_name_that_says_nothing_{i:04}').touch()
    done = subprocess.run([SCRIPT, '--env', tmp_path, '--python', '/bin/false'],
                          capture_output=True, text=True, timeout=60)
    assert 'neither a venv nor a conda prefix' in done.stdout + done.stderr


@pytest.mark.parametrize('built, asked, enough', [
    ('8.0;9.0', '9.0', True), ('9.0;8.0', '8.0;9.0', True), ('9.0', '', True),
    ('', '', True), ('9.0+PTX', '9.0', True), ('9.0', '8.0', False),
    ('8.0', '8.0;9.0', False), ('', '9.0', False), ('19.0', '9.0', False)])
def test_ops_for_several_gpus_will_do_for_one(built, asked, enough):
    function = re.search(r'^is_built_for\(\).*?^}', SCRIPT.read_text(),
                         re.M | re.S)[0]
    done = subprocess.run(
        ['bash', '-euc', f'{function}\nis_built_for "$1" "$2"', '', built,
         asked])
    assert (done.returncode == 0) == enough
